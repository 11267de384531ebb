//! The arguments of the commands that list page by page, the way through the pages, and the line that leads to the next
//! one.

use herald_cli::{
    context::Context,
    failure::Failure,
    output::{count, shell_quoted},
};

/// Which page a command asks for. The server's pages have `DEFAULT` entries, and at most `MAX`.
#[derive(Debug, clap::Args)]
pub(crate) struct Paging<const DEFAULT: u16, const MAX: u16> {
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 0,
        allow_negative_numbers = true,
        help = page_size_help(DEFAULT, MAX)
    )]
    page_size: i32,

    /// Continue after an earlier page: its `next_page_token`
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true)]
    page_token: Option<String>,
}

fn page_size_help(default: u16, max: u16) -> String {
    format!(
        "Entries per page, 1 to {}; 0 uses the server's default, {default}",
        count(u64::from(max))
    )
}

impl<const DEFAULT: u16, const MAX: u16> Paging<DEFAULT, MAX> {
    /// Begins with the page of the arguments. `all`: goes on to the last page, with the largest pages unless a size is
    /// given.
    pub(super) fn begin(&self, all: bool) -> Cursor {
        Cursor {
            size: if all && self.page_size == 0 {
                MAX.into()
            } else {
                self.page_size
            },
            token: self.page_token.clone().unwrap_or_default(),
            all,
        }
    }
}

/// The page to ask for.
#[derive(Debug)]
pub(super) struct Cursor {
    pub(super) size: i32,
    pub(super) token: String,
    all: bool,
}

impl Cursor {
    /// Whether the page whose next one has this token is the last one to print.
    pub(super) fn is_last(&self, next: &str) -> bool {
        !self.all || next.is_empty()
    }

    /// The token to print with a page when each page is printed at once. Text does not name a page that follows anyway.
    pub(super) fn printed_token(&self, next: &str, context: &Context) -> String {
        if self.is_last(next) || context.output.is_json() {
            next.to_owned()
        } else {
            String::new()
        }
    }

    /// Goes on to the next page.
    ///
    /// # Errors
    /// It is the same page again.
    pub(super) fn advance(&mut self, next: String) -> Result<(), Failure> {
        if next == self.token {
            return Err(Failure::failed("the server returned the same page token twice"));
        }
        self.token = next;
        Ok(())
    }
}

/// The line that leads to the next page; `None` after the last one. `command` is all but the token, quoted for a shell.
pub(super) fn next_page(command: &str, token: &str) -> Option<String> {
    (!token.is_empty()).then(|| format!("next page: {command} --page-token {}", shell_quoted(token)))
}

/// A table, and below it the line that leads to the next page.
pub(super) fn with_next_page(table: String, command: &str, token: &str) -> String {
    match next_page(command, token) {
        Some(line) => table + "\n\n" + &line,
        None => table,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        paging: Paging<100, 1_000>,
    }

    fn parsed(arguments: &[&str]) -> Paging<100, 1_000> {
        let all = ["command"].iter().chain(arguments);
        Command::parse_from(all).paging
    }

    #[test]
    fn all_pages_are_the_largest_unless_a_size_is_given() {
        assert_eq!(parsed(&[]).begin(false).size, 0);
        assert_eq!(parsed(&[]).begin(true).size, 1_000);
        assert_eq!(parsed(&["--page-size", "7"]).begin(true).size, 7);
        assert_eq!(
            parsed(&["--page-size", "-1", "--page-token", "-a"])
                .begin(false)
                .token,
            "-a"
        );
    }

    #[test]
    fn the_same_page_twice_ends_a_listing() {
        let mut cursor = parsed(&[]).begin(true);
        assert!(cursor.is_last("") && !cursor.is_last("a"));
        cursor.advance("a".into()).unwrap();
        assert!(cursor.advance("a".into()).is_err());
    }

    #[test]
    fn the_next_page_is_named_for_a_shell() {
        assert_eq!(next_page("herald posts list 107", ""), None);
        assert_eq!(
            next_page("herald posts list 107", "a b").unwrap(),
            "next page: herald posts list 107 --page-token 'a b'"
        );
    }
}
