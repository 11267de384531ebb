//! Untrusted text on a terminal.

use std::fmt::Write as _;

use herald_model::is_invisible;

/// Makes untrusted text safe for a terminal, on one line.
///
/// Line breaks and tabs become spaces. Other control characters and characters that leave no mark, such as the
/// bidirectional controls U+202A to U+202E and U+2066 to U+2069, are escaped as `\u{202e}`: they could reorder or hide
/// what stands around them. Joiners and variation selectors between visible characters stay, because emoji and some
/// scripts need them.
pub fn printable(text: &str) -> String {
    let mut printed = String::with_capacity(text.len());
    let mut before = None;
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\n' | '\r' | '\t' | '\u{2028}' | '\u{2029}' => printed.push(' '),
            '\u{200c}' | '\u{200d}' if is_joined(before) && is_joined(characters.peek().copied()) => {
                printed.push(c);
            }
            '\u{fe0e}' | '\u{fe0f}' if before.is_some_and(|c| !is_hidden(c)) => printed.push(c),
            c if is_hidden(c) => {
                // Writing to a `String` can't fail.
                let _ = write!(printed, "\\u{{{:x}}}", u32::from(c));
            }
            c => printed.push(c),
        }
        before = Some(c);
    }
    printed
}

/// Whether a character leaves no mark and is not a space.
fn is_hidden(c: char) -> bool {
    c.is_control() || (is_invisible(c) && !c.is_whitespace())
}

/// Whether a joiner beside this character has a meaning: a character outside ASCII, or the variation selector of an
/// emoji.
fn is_joined(c: Option<char>) -> bool {
    c.is_some_and(|c| !c.is_ascii() && (c == '\u{fe0f}' || !is_hidden(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bidirectional_controls_are_escaped() {
        for c in ('\u{202a}'..='\u{202e}').chain('\u{2066}'..='\u{2069}') {
            assert_eq!(
                printable(&format!("a{c}b")),
                format!("a\\u{{{:x}}}b", u32::from(c))
            );
        }
    }

    #[test]
    fn control_and_invisible_characters_are_escaped() {
        assert_eq!(printable("a\u{1b}[2J\u{7f}\u{9b}"), r"a\u{1b}[2J\u{7f}\u{9b}");
        assert_eq!(
            printable("\u{feff}a\u{200b}b\u{ad}\u{2060}\u{e0041}"),
            r"\u{feff}a\u{200b}b\u{ad}\u{2060}\u{e0041}"
        );
        assert_eq!(printable("user\u{200d}"), r"user\u{200d}");
        assert_eq!(printable("\u{fe0f}"), r"\u{fe0f}");
        assert_eq!(printable("one\ntwo\tthree\u{2028}four"), "one two three four");
    }

    #[test]
    fn visible_text_stays() {
        for text in [
            "a b",
            "Grüße",
            "👩\u{200d}🚀",
            "❤\u{fe0f}\u{200d}🔥",
            "می\u{200c}خواهم",
            "日本語",
            "שלום",
        ] {
            assert_eq!(printable(text), text);
        }
    }
}
