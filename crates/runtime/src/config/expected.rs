//! What a setting must be, in words, for the errors of values with another type.

use figment::error::Actual;
use herald_secret::SecretUrl;

/// Describes a value of the wrong type; `expected` is what serde names: a type of Rust, or its own words.
pub(super) fn describe(actual: &Actual, expected: &str) -> String {
    let expected = Expected::of(expected);
    format!("must be {}, is {}", expected.words(), expected.found(actual))
}

/// Describes a list with the wrong number of elements; `expected` ends with the right one, as in `a tuple of size 2`.
pub(super) fn describe_length(length: usize, expected: &str) -> String {
    match expected
        .rsplit(' ')
        .next()
        .and_then(|count| count.parse::<usize>().ok())
    {
        Some(count) => format!("must be a list of {count} elements, has {length}"),
        None => format!("must be a list with another number of elements, has {length}"),
    }
}

/// Describes a text that the type of a setting could not parse, if it has been found.
pub(super) fn describe_parse_error(message: &str, text: Option<&str>) -> String {
    match (message, text) {
        ("invalid socket address syntax", Some(text)) => {
            format!(
                "must be IP:PORT, such as 127.0.0.1:7700, or 0.0.0.0:7700 for all interfaces, is {:?}",
                SecretUrl::new(text).redacted()
            )
        }
        (other, _) => other.to_owned(),
    }
}

/// What a setting must be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Expected {
    /// A whole number between two bounds; without them, any from 0.
    Integer(Option<(String, String)>),
    NonzeroInteger,
    SignedInteger,
    Number,
    Boolean,
    Text,
    Path,
    Address,
    OneOf,
    List,
    Table,
    Other,
}

impl Expected {
    fn of(name: &str) -> Self {
        let integer = |min: String, max: String| Self::Integer(Some((min, max)));
        match name {
            "u8" => integer(0.to_string(), u8::MAX.to_string()),
            "u16" => integer(0.to_string(), u16::MAX.to_string()),
            "u32" => integer(0.to_string(), u32::MAX.to_string()),
            "u64" | "usize" | "u128" => Self::Integer(None),
            "i8" => integer(i8::MIN.to_string(), i8::MAX.to_string()),
            "i16" => integer(i16::MIN.to_string(), i16::MAX.to_string()),
            "i32" => integer(i32::MIN.to_string(), i32::MAX.to_string()),
            "i64" | "isize" | "i128" => Self::SignedInteger,
            "f32" | "f64" => Self::Number,
            "a boolean" => Self::Boolean,
            "a string" | "a borrowed string" | "a character" => Self::Text,
            "path string" | "a path" => Self::Path,
            "socket address" | "IPv4 socket address" | "IPv6 socket address" => Self::Address,
            "enum" | "string or map" | "string only" | "unit variant" | "variant identifier" => Self::OneOf,
            "a sequence" => Self::List,
            "a map" => Self::Table,
            _ if name.starts_with("a nonzero ") => Self::NonzeroInteger,
            _ if name.starts_with("struct ") => Self::Table,
            _ if name.starts_with("enum ") => Self::OneOf,
            _ if name.starts_with("a tuple of size ")
                || name.starts_with("tuple ")
                || name.starts_with("an array of length ") =>
            {
                Self::List
            }
            _ => Self::Other,
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Integer(Some((min, max))) => format!("a whole number from {min} to {max}"),
            Self::Integer(None) => "a whole number, 0 or more".into(),
            Self::NonzeroInteger => "a whole number other than 0".into(),
            Self::SignedInteger => "a whole number".into(),
            Self::Number => "a number, such as 0.5".into(),
            Self::Boolean => "true or false".into(),
            Self::Text => "a text".into(),
            // serde names no choices for a value that is no text.
            Self::OneOf => "one of its words".into(),
            Self::Path => "a path".into(),
            Self::Address => "IP:PORT, such as 127.0.0.1:7700".into(),
            Self::List => "a list, such as [a, b]".into(),
            Self::Table => "a table of settings".into(),
            Self::Other => "a value of another type".into(),
        }
    }

    /// The value that was found. Only its type is said if it could be a secret: a setting whose value is a number, a
    /// boolean or one of a few words is none.
    fn found(&self, actual: &Actual) -> String {
        let is_public = matches!(
            self,
            Self::Integer(_)
                | Self::NonzeroInteger
                | Self::SignedInteger
                | Self::Number
                | Self::Boolean
                | Self::Address
                | Self::OneOf
        );
        let value = match actual {
            Actual::Bool(value) => Some(value.to_string()),
            Actual::Unsigned(value) => Some(value.to_string()),
            Actual::Signed(value) => Some(value.to_string()),
            Actual::Float(value) => Some(value.to_string()),
            Actual::Char(value) => Some(format!("{:?}", value.to_string())),
            // A URL with a password can be set by mistake.
            Actual::Str(value) => Some(format!("{:?}", SecretUrl::new(value).redacted())),
            _ => None,
        };
        value.filter(|_| is_public).unwrap_or_else(|| kind(actual).into())
    }
}

fn kind(actual: &Actual) -> &'static str {
    match actual {
        Actual::Bool(_) => "true or false",
        Actual::Unsigned(_) | Actual::Signed(_) => "a whole number",
        Actual::Float(_) => "a number",
        Actual::Char(_) | Actual::Str(_) => "a text",
        Actual::Bytes(_) => "bytes",
        Actual::Unit | Actual::Option => "nothing",
        Actual::Seq => "a list",
        Actual::Map => "a table",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_is_said_in_words_with_the_value() {
        for (actual, expected, reason) in [
            (
                Actual::Str("many".into()),
                "u16",
                "must be a whole number from 0 to 65535, is \"many\"",
            ),
            (
                Actual::Signed(-1),
                "u32",
                "must be a whole number from 0 to 4294967295, is -1",
            ),
            (
                Actual::Float(1.5),
                "a nonzero u32",
                "must be a whole number other than 0, is 1.5",
            ),
            (
                Actual::Str("yes".into()),
                "a boolean",
                "must be true or false, is \"yes\"",
            ),
            (
                Actual::Unsigned(5),
                "enum LogFormat",
                "must be one of its words, is 5",
            ),
            (
                Actual::Seq,
                "struct Nats",
                "must be a table of settings, is a list",
            ),
        ] {
            assert_eq!(describe(&actual, expected), reason);
        }
    }

    #[test]
    fn a_list_of_another_length_is_described_by_the_right_one() {
        assert_eq!(
            describe_length(0, "a tuple of size 2"),
            "must be a list of 2 elements, has 0"
        );
        assert_eq!(
            describe(&Actual::Map, "a tuple of size 2"),
            "must be a list, such as [a, b], is a table"
        );
    }

    #[test]
    fn the_password_of_a_url_in_the_wrong_setting_is_not_said() {
        let url = "nats://me:hunter2@host:4222";
        for reason in [
            describe(&Actual::Str(url.into()), "u16"),
            describe_parse_error("invalid socket address syntax", Some(url)),
        ] {
            assert!(reason.contains("is \"nats://me:[hidden]@host:4222\""), "{reason}");
        }
    }

    #[test]
    fn a_value_that_could_be_a_secret_is_not_said() {
        for expected in [
            "a string",
            "path string",
            "struct Secret",
            "a sequence",
            "anything",
        ] {
            for actual in [Actual::Unsigned(12_345), Actual::Str("12345".into())] {
                let reason = describe(&actual, expected);
                assert!(!reason.contains("12345"), "{reason}");
            }
        }
    }
}
