//! The commands in a Markdown file, and what the file shows of their output.
//!
//! A `console` block holds commands, each after `$ `, and below each command all that it prints to standard output. A `…` in
//! such a line stands for any text, a line that is only `…` stands for any number of lines, and the width of a gap
//! between words doesn't matter. Comments are the shell's.

/// Languages of blocks that hold no commands.
const DATA: [&str; 7] = ["", "json", "mermaid", "python", "sql", "text", "toml"];

/// Any text of a line, or any lines.
const ELISION: &str = "…";

/// One command of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Command {
    /// Its line in the file, from 1.
    pub(super) line: usize,
    /// The command line as the file has it.
    pub(super) text: String,
    /// The lines that the file shows of its output.
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

    /// Whether this output is the one that the file shows.
    pub(super) fn is_output(&self, output: &str) -> bool {
        lines_match(
            &self.expected.iter().map(String::as_str).collect::<Vec<_>>(),
            &output.trim_end().lines().collect::<Vec<_>>(),
        )
    }

    /// Whether this output begins with all that the file shows.
    pub(super) fn begins(&self, output: &str) -> bool {
        begins(&self.expected, output)
    }

    /// Whether this output begins with what the file shows up to the first line that isn't an elision.
    pub(super) fn has_begun(&self, output: &str) -> bool {
        let first = self.expected.iter().position(|line| line != ELISION);
        begins(&self.expected[..=first.unwrap_or_default()], output)
    }
}

/// The commands of a Markdown file in their order. The error names the line of what isn't understood.
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
                        "line {line}: a block of {name}: commands stand in a console block"
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
                return Err(format!("line {line}: output of no command"));
            }
        } else if fence.starts_with("$ ") || fence.starts_with("~~~") {
            return Err(format!("line {line}: commands stand in a console block"));
        }
    }
    for command in &mut commands {
        while command.expected.last().is_some_and(|line| line.trim().is_empty()) {
            command.expected.pop();
        }
        if !command.expected.is_empty() && command.expected.iter().all(|line| line == ELISION) {
            let line = command.line;
            return Err(format!(
                "line {line}: nothing of the output is shown, so nothing can be checked"
            ));
        }
    }
    match language {
        Some(_) => Err("the last block has no end".into()),
        None => Ok(commands),
    }
}

fn begins(expected: &[String], output: &str) -> bool {
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
    fn commands_are_found_with_their_output() {
        let markdown = "# Title\n```console\n$ a 'b'  # why\none\n\ntwo\n\n$ c\n```\n```json\n{}\n```\n";
        let commands = parse(markdown).unwrap();
        assert_eq!(commands.len(), 2);
        assert_eq!((commands[0].line, commands[1].line), (3, 8));
        assert_eq!(commands[0].without_comment(), "a 'b'");
        assert_eq!(commands[0].expected, ["one", "", "two"]);
        assert_eq!(commands[1].expected, [""; 0]);
    }

    #[test]
    fn what_would_not_be_run_or_checked_is_refused() {
        for (markdown, reason) in [
            ("```sh\nherald up\n```\n", "line 1: a block of sh"),
            ("```\n$ herald up\n```\n", "line 2: commands stand"),
            ("text\n\n    $ herald up\n", "line 3: commands stand"),
            ("~~~console\n$ herald up\n~~~\n", "line 1: commands stand"),
            ("```console\nready\n```\n", "line 2: output of no command"),
            (
                "```console\n$ a\n```\n```console\nb\n```\n",
                "line 5: output of no command",
            ),
            (
                "```console\n$ herald up\n…\n```\n",
                "line 2: nothing of the output",
            ),
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
            assert_eq!(
                command(expected).is_output(output),
                same,
                "{expected:?} {output:?}"
            );
        }
    }

    #[test]
    fn output_that_goes_on_is_compared_with_its_beginning() {
        let command = command(&["…", "ready", "pushed"]);
        assert!(!command.has_begun("starting\n"));
        assert!(command.has_begun("starting\nready\n") && !command.begins("starting\nready\n"));
        assert!(command.begins("ready\npushed\nmore\n"));
    }
}
