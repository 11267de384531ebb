//! Errors of the command line, in plain words.

use std::{
    error::Error as _,
    net::AddrParseError,
    num::{IntErrorKind, ParseFloatError, ParseIntError},
};

use clap::error::{ContextKind, ContextValue};
use herald_cli::failure::printable;
use herald_runtime::config::SecretUrl;

/// clap's text of an error, without the password of a URL in it. The texts of Rust's parsers are replaced by what is
/// expected. Arguments can be untrusted, such as user ids: a text with characters to escape is without colours.
pub(crate) fn text(error: &clap::Error, ansi: bool) -> String {
    let rendered = error.render();
    let plain = rendered.to_string();
    if let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) {
        let shown = SecretUrl::new(value).redacted();
        if shown != *value {
            let hidden = plain.replace(value, &shown);
            return hidden.split('\n').map(printable).collect::<Vec<_>>().join("\n");
        }
    }
    let escaped = plain.split('\n').map(printable).collect::<Vec<_>>().join("\n");
    let text = if ansi && escaped == plain {
        rendered.ansi().to_string()
    } else {
        escaped
    };
    let Some(source) = error.source() else {
        return text;
    };
    let found = source.to_string();
    let expected = if let Some(error) = source.downcast_ref::<ParseIntError>() {
        match error.kind() {
            IntErrorKind::PosOverflow => "the number is too large".to_owned(),
            IntErrorKind::NegOverflow => "the number is too small".to_owned(),
            _ => "expected a whole number, such as 17".to_owned(),
        }
    } else if source.is::<ParseFloatError>() {
        "expected a number, such as 0.5".to_owned()
    } else if source.is::<AddrParseError>() {
        "expected IP:PORT, such as 127.0.0.1:7700, or 0.0.0.0:7700 for all interfaces".to_owned()
    } else if let Some(expected) = range(&found) {
        expected
    } else {
        return text;
    };
    text.replacen(&found, &expected, 1)
}

/// The bounds of clap's text `70000 is not in 0..=65535` or, without an upper bound, `0 is not in 1..18446744073709551615`.
fn range(text: &str) -> Option<String> {
    let (_, bounds) = text.split_once(" is not in ")?;
    let (first, last) = bounds.split_once("..=").or_else(|| bounds.split_once(".."))?;
    let unbounded = [i64::MAX.to_string(), u64::MAX.to_string()];
    Some(if unbounded.iter().any(|max| max == last) {
        format!("expected at least {first}")
    } else {
        format!("expected {first} to {last}")
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    fn error(arguments: &[&str]) -> String {
        let arguments = ["herald"].iter().chain(arguments);
        let Err(error) = Cli::try_parse_from(arguments) else {
            panic!("the arguments are valid")
        };
        text(&error, false).lines().next().unwrap().to_owned()
    }

    #[test]
    fn errors_say_what_is_expected() {
        assert_eq!(
            error(&["delivery", "zzz"]),
            "error: invalid value 'zzz' for '<POST>': expected a whole number, such as 17"
        );
        assert_eq!(
            error(&["delivery", "99999999999999999999999"]),
            "error: invalid value '99999999999999999999999' for '<POST>': the number is too large"
        );
        assert_eq!(
            error(&["up", "--grpc", "7800"]),
            "error: invalid value '7800' for '--grpc <ADDRESS>': expected IP:PORT, such as 127.0.0.1:7700, or \
             0.0.0.0:7700 for all interfaces"
        );
        assert_eq!(
            error(&["up", "--nats-port", "70000"]),
            "error: invalid value '70000' for '--nats-port <PORT>': expected 0 to 65535"
        );
        assert_eq!(
            error(&["dlq", "show", "0"]),
            "error: invalid value '0' for '<DEAD_LETTER>': expected at least 1"
        );
    }

    #[test]
    fn a_password_is_hidden() {
        assert_eq!(
            error(&["up", "--server", "http://me:hunter2@host:7700"]),
            "error: invalid value 'http://me:[hidden]@host:7700' for '--server <URL>': not an address; use http://HOST:PORT, \
             https://HOST:PORT or HOST:PORT, such as localhost:7700"
        );
        let error = error(&["top", "--metrics", "http://me:hunter2@host:7701"]);
        assert!(
            error.contains("must have no user") && !error.contains("hunter2"),
            "{error}"
        );
    }

    #[test]
    fn arguments_are_escaped() {
        let expected = r"error: unrecognized subcommand 'a\u{202e}b'";
        assert_eq!(error(&["posts", "a\u{202e}b"]), expected);
        let Err(error) = Cli::try_parse_from(["herald", "posts", "a\u{202e}b"]) else {
            panic!("the arguments are valid")
        };
        assert!(text(&error, true).starts_with(expected));
    }

    #[test]
    fn a_delete_without_a_guard_names_both_ways() {
        let Err(error) = Cli::try_parse_from(["herald", "delete", "17"]) else {
            panic!("the arguments are valid")
        };
        let text = text(&error, false);
        assert!(text.contains("<--author <USER>|--any-author>"), "{text}");
    }
}
