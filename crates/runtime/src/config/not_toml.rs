//! Errors of files that are not TOML. They contain no text of the file: any line of it can have a secret.

/// Describes an error of the parser: the line, the column and what is wrong there.
pub(super) fn describe(text: &str, error: &toml::de::Error) -> String {
    // The parser repeats the keys of these two errors. A part of a secret can pass for a key, if its quotes are missing.
    let message = error.message();
    let message = if message.contains("duplicate key") {
        "a key is set twice".to_owned()
    } else if message.contains("dotted key") {
        "a dotted key extends a value that is no table".to_owned()
    } else {
        let lines: Vec<&str> = message.lines().map(str::trim).collect();
        lines.join(", ")
    };
    match error.span() {
        Some(span) => {
            let (line, column) = position(text, span.start);
            format!("is not TOML: line {line}, column {column}: {message}")
        }
        None => format!("is not TOML: {message}"),
    }
}

/// Line and column of a byte, both from 1.
fn position(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        describe(text, &toml::from_str::<toml::Table>(text).unwrap_err())
    }

    #[test]
    fn the_place_and_what_is_wrong_are_said_without_text_of_the_file() {
        for (text, place) in [
            ("[nats]\npassword = hunter2\n", "line 2, column 12: "),
            ("[nats]\npassword = \"hunter2\n", "line 2, column "),
            ("[nats]\npassword = 'hunter2", "line 2, column "),
            ("password = \"\"\"hunter2\nhunter2", "line 2, column "),
            ("password = \"hunter2\" hunter2", "line 1, column "),
            ("password = \"\\hunter2\"", "line 1, column "),
            ("hunter2", "line 1, column "),
            ("hunter2 = 1\nhunter2 = 2", "line 2, column 1: a key is set twice"),
            ("[hunter2]\n[hunter2]", "line 2, column "),
            (
                "hunter2 = 1\nhunter2.b = 2",
                "line 2, column 1: a dotted key extends a value that is no table",
            ),
            ("\"ü\" = hunter2", "line 1, column 7: "),
        ] {
            let error = error(text);
            let start = format!("is not TOML: {place}");
            assert!(error.starts_with(&start), "{text:?}: {error}");
            assert!(!error.contains("hunter2") && !error.contains('\n'), "{error}");
        }
    }
}
