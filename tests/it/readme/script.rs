//! Parses the commands of a Markdown file with their expected output.
//!
//! A `console` block holds commands, each after `$ `, and below each command its complete standard output. A `…` within
//! a line matches any text, a line `…` matches any number of lines, and the number of spaces between words is ignored.
//! Comments are shell comments.

/// Languages of blocks without commands.
const DATA: [&str; 7] = ["", "json", "mermaid", "python", "sql", "text", "toml"];

/// Matches any text within a line, or any number of lines.
const ELISION: &str = "…";

/// One command of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Command {
    /// Line number in the file, from 1.
    pub(super) line: usize,
    /// The command line as written.
    pub(super) text: String,
    /// The expected output lines.
    pub(super) expected: Vec<String>,
}

impl Command {
    /// The command line without its comment.
    pub(super) fn without_comment(&self) -> &str {
        self.text
            .split_once(" #")
            .map_or(self.text.as_str(), |(command, _)| command)
            .trim()
    }

    /// Whether the complete output matches.
    pub(super) fn matches(&self, output: &str) -> bool {
        lines_match(
            &self.expected.iter().map(String::as_str).collect::<Vec<_>>(),
            &output.trim_end().lines().collect::<Vec<_>>(),
        )
    }

    /// Whether the output starts with all expected lines.
    pub(super) fn matches_start(&self, output: &str) -> bool {
        starts_with_lines(&self.expected, output)
    }

    /// Whether the output starts with the expected lines up to the first one that isn't an elision.
    pub(super) fn matches_first_line(&self, output: &str) -> bool {
        let first = self.expected.iter().position(|line| line != ELISION);
        starts_with_lines(&self.expected[..=first.unwrap_or_default()], output)
    }
}

/// Parses the commands of a Markdown file in order. The error names the invalid line.
pub(super) fn parse(markdown: &str) -> Result<Vec<Command>, String> {
    let mut commands: Vec<Command> = Vec::new();
    let mut language: Option<&str> = None;
    let mut first_of_block = 0;
    for (line, text) in (1..).zip(markdown.lines()) {
        let fence = text.trim_start();
        if let Some(name) = fence.strip_prefix("```") {
            language = match language {
                Some(_) => None,
                None if name == "console" || DATA.contains(&name) => Some(name),
                None => {
                    return Err(format!(
                        "line {line}: block of language {name}: put commands into a console block"
                    ));
                }
            };
            first_of_block = commands.len();
        } else if language == Some("console") {
            if let Some(command) = text.strip_prefix("$ ") {
                commands.push(Command {
                    line,
                    text: command.to_owned(),
                    expected: Vec::new(),
                });
            } else if let Some(command) = commands[first_of_block..].last_mut() {
                command.expected.push(text.to_owned());
            } else {
                return Err(format!("line {line}: output without a command"));
            }
        } else if fence.starts_with("$ ") || fence.starts_with("~~~") {
            return Err(format!("line {line}: put commands into a console block"));
        }
    }
    for command in &mut commands {
        while command.expected.last().is_some_and(|line| line.trim().is_empty()) {
            command.expected.pop();
        }
        if !command.expected.is_empty() && command.expected.iter().all(|line| line == ELISION) {
            let line = command.line;
            return Err(format!(
                "line {line}: the expected output is only `…`; show at least one line"
            ));
        }
    }
    match language {
        Some(_) => Err("the last block is not closed".into()),
        None => Ok(commands),
    }
}

fn starts_with_lines(expected: &[String], output: &str) -> bool {
    let expected = expected.iter().map(String::as_str).chain([ELISION]);
    lines_match(&expected.collect::<Vec<_>>(), &output.lines().collect::<Vec<_>>())
}

fn lines_match(expected: &[&str], actual: &[&str]) -> bool {
    match (expected, actual) {
        ([], []) => true,
        ([ELISION, rest @ ..], _) => (0..=actual.len()).any(|skipped| lines_match(rest, &actual[skipped..])),
        ([line, expected @ ..], [printed, actual @ ..]) => {
            line_matches(line, printed) && lines_match(expected, actual)
        }
        _ => false,
    }
}

fn line_matches(expected: &str, actual: &str) -> bool {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (expected, actual) = (words(expected), words(actual));
    let mut parts = expected.split(ELISION);
    let Some(mut rest) = parts.next().and_then(|start| actual.strip_prefix(start)) else {
        return false;
    };
    let mut parts = parts.peekable();
    let elided = parts.peek().is_some();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    elided || rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(expected: &[&str]) -> Command {
        Command {
            line: 1,
            text: String::new(),
            expected: expected.iter().map(|line| (*line).to_owned()).collect(),
        }
    }

    #[test]
    fn commands_are_parsed_with_their_output() {
        let markdown = "# Title\n```console\n$ a 'b'  # why\none\n\ntwo\n\n$ c\n```\n```json\n{}\n```\n";
        let commands = parse(markdown).unwrap();
        assert_eq!(commands.len(), 2);
        assert_eq!((commands[0].line, commands[1].line), (3, 8));
        assert_eq!(commands[0].without_comment(), "a 'b'");
        assert_eq!(commands[0].expected, ["one", "", "two"]);
        assert_eq!(commands[1].expected, [""; 0]);
    }

    #[test]
    fn commands_that_would_not_be_run_or_checked_are_refused() {
        for (markdown, reason) in [
            ("```sh\nherald up\n```\n", "line 1: block of language sh"),
            ("```\n$ herald up\n```\n", "line 2: put commands"),
            ("text\n\n    $ herald up\n", "line 3: put commands"),
            ("~~~console\n$ herald up\n~~~\n", "line 1: put commands"),
            ("```console\nready\n```\n", "line 2: output without a command"),
            (
                "```console\n$ a\n```\n```console\nb\n```\n",
                "line 5: output without a command",
            ),
            ("```console\n$ herald up\n…\n```\n", "line 2: the expected output"),
            ("```console\n$ herald up\n", "the last block"),
        ] {
            let error = parse(markdown).unwrap_err();
            assert!(error.starts_with(reason), "{markdown:?}: {error}");
        }
    }

    #[test]
    fn output_is_compared_line_by_line() {
        let table = [
            (&["a  1"][..], "a    1\n", true),
            (&["a 1"], "a 2\n", false),
            (&["a 1"], "a 11\n", false),
            (&["a"], "a\nb\n", false),
            (&["a", "b"], "a\n", false),
            (&[], "", true),
            (&[], "a\n", false),
            (&["a", "…", "d"], "a\nb\nc\nd\n", true),
            (&["a", "…"], "a\n", true),
            (&["…", "d"], "a\nc\n", false),
            (&["post … of …"], "post 7 of ann\n", true),
            (&["post … of ann"], "post 7 of bob\n", false),
            (&["…ms …"], "1.0 ms x\n", true),
            (&["a…a"], "a\n", false),
            (&["… a … b"], "1 b\n", false),
        ];
        for (expected, output, same) in table {
            assert_eq!(command(expected).matches(output), same, "{expected:?} {output:?}");
        }
    }

    #[test]
    fn partial_output_is_compared_with_the_first_lines() {
        let command = command(&["…", "ready", "pushed"]);
        assert!(!command.matches_first_line("starting\n"));
        assert!(
            command.matches_first_line("starting\nready\n") && !command.matches_start("starting\nready\n")
        );
        assert!(command.matches_start("ready\npushed\nmore\n"));
    }
}
