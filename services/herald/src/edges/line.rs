//! Parses one line of a file of follows.

use herald_model::UserId;

use super::LINE_BYTES_MAX;

/// Byte order mark.
const BOM: char = '\u{feff}';

/// Names of the column with the follower, in lower case, without `_`, `-` and spaces.
const FOLLOWER_COLUMNS: &[&str] = &[
    "follower",
    "followerid",
    "from",
    "fromid",
    "fromnode",
    "fromnodeid",
    "fromuser",
    "fromuserid",
    "source",
    "sourceid",
    "src",
    "srcid",
];

/// Names of the column with the author, as above.
const AUTHOR_COLUMNS: &[&str] = &[
    "author",
    "authorid",
    "destination",
    "destinationid",
    "dst",
    "dstid",
    "followed",
    "followedid",
    "followee",
    "followeeid",
    "following",
    "followingid",
    "target",
    "targetid",
    "to",
    "toid",
    "tonode",
    "tonodeid",
    "touser",
    "touserid",
];

/// Characters at the start or end of an unquoted id that show another format: quotes, brackets or separators that the
/// grammar doesn't have. Only double quotes make them part of an id.
const FOREIGN_STARTS: &[char] = &[
    '\'', '`', '“', '”', '„', '‘', '’', '«', '(', '[', '{', '<', '|', ':', '，', '；', '、', '،', '؛',
];
const FOREIGN_ENDS: &[char] = &[
    '\'', '`', '“', '”', '‘', '’', '»', '|', ':', '，', '；', '、', '،', '؛',
];

/// What a valid line holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Nothing: the line is blank or a comment.
    Skipped,
    Header(Header),
    Pair(UserId, UserId),
}

/// The columns of a header row.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) columns: [String; 2],
    pub(super) author_first: bool,
}

/// Parses a line, or returns the reason why it is invalid.
pub(super) fn parse(line: &[u8], header_possible: bool) -> Result<Line, String> {
    if line.len() as u64 > LINE_BYTES_MAX {
        return Err(format!("is longer than {LINE_BYTES_MAX} bytes"));
    }
    // Some editors write a byte order mark at the start of a file; concatenated files have it at the start of any line.
    let line = std::str::from_utf8(line)
        .map_err(|_| "is not UTF-8".to_owned())?
        .trim_start_matches(BOM)
        .trim();
    if line.is_empty() || ["#", "%", "//"].iter().any(|comment| line.starts_with(comment)) {
        return Ok(Line::Skipped);
    }
    if line.contains(BOM) {
        return Err("has a byte order mark after its start".into());
    }
    let (a, b) = fields(line)?;
    if header_possible && let Some(author_first) = column_order(&a, &b) {
        return Ok(Line::Header(Header {
            columns: [a, b],
            author_first,
        }));
    }
    let id =
        |which: &str, id: String| UserId::new(id).map_err(|error| format!("the {which} user id {error}"));
    let (a, b) = (id("first", a)?, id("second", b)?);
    if a == b {
        Err("a user can't follow themselves".into())
    } else {
        Ok(Line::Pair(a, b))
    }
}

/// Splits a line without white space at its ends into two fields.
fn fields(line: &str) -> Result<(String, String), String> {
    if line.starts_with(is_mark) {
        return Err("begins with a separator".into());
    }
    let (a, rest) = field(line)?;
    if rest.is_empty() {
        return Err("has one user id, needs two".into());
    }
    let rest = after_separator(rest)?;
    let (b, rest) = field(rest)?;
    if !rest.is_empty() {
        after_separator(rest)?;
        return Err("has more than two user ids".into());
    }
    Ok((a, b))
}

/// Reads a quoted or unquoted field from the start of `text`; returns it and the rest of the text.
fn field(text: &str) -> Result<(String, &str), String> {
    if let Some(quoted) = text.strip_prefix('"') {
        return quoted_field(quoted);
    }
    let end = text.find(is_separator).unwrap_or(text.len());
    let (field, rest) = text.split_at(end);
    let quote_needed = |c: char| format!("has {c} in a user id without double quotes around the id");
    if field.contains('"') {
        return Err(quote_needed('"'));
    }
    let first = field.chars().next().filter(|c| FOREIGN_STARTS.contains(c));
    let last = field.chars().next_back().filter(|c| FOREIGN_ENDS.contains(c));
    match first.or(last) {
        Some(c) => Err(quote_needed(c)),
        None => Ok((field.to_owned(), rest)),
    }
}

/// Reads a quoted field from behind its opening quote. Two quotes stand for one.
fn quoted_field(text: &str) -> Result<(String, &str), String> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let Some((part, after)) = rest.split_once('"') else {
            return Err("has an opening quote without a closing one".into());
        };
        field.push_str(part);
        match after.strip_prefix('"') {
            Some(after) => {
                field.push('"');
                rest = after;
            }
            None if after.is_empty() || after.starts_with(is_separator) => return Ok((field, after)),
            None => return Err("has text right after a closing quote".into()),
        }
    }
}

/// Skips the separator at the start of `text`: white space, or one comma or semicolon with white space around it.
fn after_separator(text: &str) -> Result<&str, String> {
    let text = text.trim_start();
    let Some(rest) = text.strip_prefix(is_mark) else {
        return Ok(text);
    };
    let rest = rest.trim_start();
    if rest.trim_start_matches(is_separator).is_empty() {
        Err("ends with a separator".into())
    } else if rest.starts_with(is_mark) {
        Err("has no user id between two separators".into())
    } else {
        Ok(rest)
    }
}

fn is_separator(c: char) -> bool {
    c.is_whitespace() || is_mark(c)
}

const fn is_mark(c: char) -> bool {
    matches!(c, ',' | ';')
}

/// Whether the author comes first, if the fields name the two columns.
fn column_order(a: &str, b: &str) -> Option<bool> {
    let name = |field: &str| -> String {
        let letters = field.chars().filter(|c| !matches!(c, '_' | '-' | ' '));
        letters.flat_map(char::to_lowercase).collect()
    };
    let (a, b) = (name(a), name(b));
    let is_header = |follower: &str, author: &str| {
        FOLLOWER_COLUMNS.contains(&follower) && AUTHOR_COLUMNS.contains(&author)
    };
    if is_header(&a, &b) {
        Some(false)
    } else if is_header(&b, &a) {
        Some(true)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair(line: &str) -> (String, String) {
        match parse(line.as_bytes(), false) {
            Ok(Line::Pair(a, b)) => (a.into_string(), b.into_string()),
            other => panic!("{line:?}: {other:?}"),
        }
    }

    fn reason(line: &str) -> String {
        parse(line.as_bytes(), true).expect_err(line)
    }

    #[test]
    fn separators_and_quotes_are_not_part_of_an_id() {
        for line in [
            "1 107",
            "1\t107",
            "1,107",
            "1;107",
            "1, 107",
            "1 ,107",
            "1 , 107",
            "1; 107",
            "1\t;\t107",
            "1\u{a0}107",
            "  1   107 \r\n",
            "\"1\" \"107\"",
            "\"1\",\"107\"",
            "\"1\" ; 107",
            "1,\"107\"",
            "\u{feff}1 107",
            "\u{feff}\u{feff}\"1\",107\r\n",
        ] {
            assert_eq!(pair(line), ("1".into(), "107".into()), "{line:?}");
        }
    }

    #[test]
    fn quotes_make_any_character_part_of_an_id() {
        assert_eq!(pair("\"a, b\" \"c;d\""), ("a, b".into(), "c;d".into()));
        assert_eq!(pair("\"a\"\"b\",\"#c\""), ("a\"b".into(), "#c".into()));
        assert_eq!(pair("\"//a\" \"'b'\""), ("//a".into(), "'b'".into()));
        assert_eq!(pair("o'brien auth0|7"), ("o'brien".into(), "auth0|7".into()));
    }

    #[test]
    fn blank_lines_and_comments_hold_nothing() {
        for line in [
            "",
            "\n",
            " \t\r\n",
            "\u{feff}",
            "\u{feff}\r\n",
            "# a b",
            " % a b",
            "// a b",
            "\u{feff}#",
            "\u{feff} //",
        ] {
            assert_eq!(parse(line.as_bytes(), true), Ok(Line::Skipped), "{line:?}");
        }
    }

    #[test]
    fn other_lines_are_refused_with_a_reason() {
        for (line, expected) in [
            ("1", "has one user id, needs two"),
            ("1|107", "has one user id, needs two"),
            ("1 2 3", "has more than two user ids"),
            ("1 2 # a comment", "has more than two user ids"),
            ("1 2\r3 4\r", "has more than two user ids"),
            ("1,", "ends with a separator"),
            ("1 107,", "ends with a separator"),
            ("1,107 ; ", "ends with a separator"),
            ("1,107,,", "ends with a separator"),
            (",1 107", "begins with a separator"),
            (",", "begins with a separator"),
            ("1,,107", "has no user id between two separators"),
            ("1 ; , 107", "has no user id between two separators"),
            ("\"1 107", "has an opening quote without a closing one"),
            ("1 \"107", "has an opening quote without a closing one"),
            ("\"1\"2 107", "has text right after a closing quote"),
            ("\"1\"\"107\"", "has one user id, needs two"),
            (
                "1\" 107",
                "has \" in a user id without double quotes around the id",
            ),
            (
                "[\"1\", \"107\"]",
                "has \" in a user id without double quotes around the id",
            ),
            (
                "(1, 107)",
                "has ( in a user id without double quotes around the id",
            ),
            (
                "'1' '107'",
                "has ' in a user id without double quotes around the id",
            ),
            (
                "“1” “107”",
                "has “ in a user id without double quotes around the id",
            ),
            ("1| 107", "has | in a user id without double quotes around the id"),
            (
                "1， 107",
                "has ， in a user id without double quotes around the id",
            ),
            ("1 \u{feff}107", "has a byte order mark after its start"),
            ("1 1", "a user can't follow themselves"),
            ("\"\" 107", "the first user id must not be empty"),
            ("1 \" \"", "the second user id must have a visible character"),
            ("\u{200b} 107", "the first user id must have a visible character"),
            ("1,\u{2060}", "the second user id must have a visible character"),
            ("1\0 107", "the first user id must not contain control characters"),
            ("follower,author,since", "has more than two user ids"),
        ] {
            assert_eq!(reason(line), expected, "{line:?}");
        }
    }

    #[test]
    fn columns_are_recognised_by_name() {
        for (line, author_first) in [
            ("follower author", false),
            ("\"Follower ID\",\"Followee-ID\"", false),
            ("FromNodeId\tToNodeId", false),
            ("source;target", false),
            ("author,follower", true),
        ] {
            match parse(line.as_bytes(), true) {
                Ok(Line::Header(header)) => assert_eq!(header.author_first, author_first, "{line}"),
                other => panic!("{line}: {other:?}"),
            }
        }
        for line in ["a b", "follower follower2", "source from", "id author"] {
            assert!(
                matches!(parse(line.as_bytes(), true), Ok(Line::Pair(..))),
                "{line}"
            );
        }
    }

    proptest! {
        #[test]
        fn bytes_near_a_line_are_two_users_or_have_a_reason(
            line in herald_fuzz::near(prop::sample::select(vec![
                "ann,bob\r\n", "\"ann\";\"b \"\"ob\"\n", "follower_id\tauthor_id\n", "# comment\n", "\u{feff}1 2\n", "\n",
            ]).prop_map(|line| line.as_bytes().to_vec())),
            header_possible: bool,
        ) {
            match parse(&line, header_possible) {
                Ok(Line::Pair(a, b)) => {
                    prop_assert!(a != b);
                    prop_assert_eq!(UserId::new(a.as_str()), Ok(a));
                    prop_assert_eq!(UserId::new(b.as_str()), Ok(b));
                }
                Ok(Line::Header(_)) => prop_assert!(header_possible),
                Ok(Line::Skipped) => {}
                Err(reason) => prop_assert!(!reason.is_empty()),
            }
        }

        #[test]
        fn quoted_ids_come_back(
            a in "[^\\p{C}\u{feff}]{1,20}", b in "[^\\p{C}\u{feff}]{1,20}", separator in " |\t|,|;| , |;  "
        ) {
            let quoted = |id: &str| format!("\"{}\"", id.replace('"', "\"\""));
            let parsed = parse(format!("{}{separator}{}\r\n", quoted(&a), quoted(&b)).as_bytes(), false);
            match (UserId::new(a.as_str()), UserId::new(b.as_str())) {
                (Ok(a), Ok(b)) if a != b => prop_assert_eq!(parsed, Ok(Line::Pair(a, b))),
                _ => prop_assert!(parsed.is_err()),
            }
        }

        #[test]
        fn unquoted_ids_have_no_separator_and_no_quote(line in "[ab01 \t,;\"'#%/\u{feff}\u{200b}]{0,12}") {
            if let Ok(Line::Pair(a, b)) = parse(line.as_bytes(), true)
                && !line.contains('"')
            {
                for id in [a, b] {
                    let foreign = id.as_str().contains(|c| is_separator(c) || c == '"' || c == BOM);
                    prop_assert!(!foreign, "{:?}", id);
                    prop_assert!(line.contains(id.as_str()));
                }
            }
        }
    }
}
