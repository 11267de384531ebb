//! Validation of a post's fields.

use std::{collections::BTreeMap, time::Duration};

use url::Url;
use uuid::Uuid;

/// Maximum length of a text, characters (Unicode scalar values).
const TEXT_CHARACTERS_MAX: usize = 10_000;
/// Maximum length of a URL, bytes.
const URL_BYTES_MAX: usize = 2_048;
/// Maximum number of links, and of media URLs.
const URLS_MAX: usize = 16;
/// Time to live of a push if the request has none.
pub(crate) const PUSH_TTL_DEFAULT: Duration = Duration::from_hours(1);

/// Maximum length of the title of a push, characters.
const PUSH_TITLE_CHARACTERS_MAX: usize = 120;
/// Maximum length of the collapse key of a push, bytes.
const COLLAPSE_KEY_BYTES_MAX: usize = 64;
/// Maximum number of entries of a push's custom data.
const PUSH_DATA_ENTRIES_MAX: usize = 16;
/// Maximum length of a key of a push's custom data, bytes.
const PUSH_DATA_KEY_BYTES_MAX: usize = 64;
/// Maximum total size of the keys and values of a push's custom data, bytes.
const PUSH_DATA_BYTES_MAX: usize = 768;

/// Checks a text: 1 to 10,000 characters.
pub(crate) fn check_text(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("must not be empty".into());
    }
    // A text never has more characters than bytes, so short texts need no count.
    if text.len() <= TEXT_CHARACTERS_MAX {
        return Ok(());
    }
    match text.chars().count() {
        ..=TEXT_CHARACTERS_MAX => Ok(()),
        count => Err(format!(
            "must be at most {TEXT_CHARACTERS_MAX} characters long, is {count}"
        )),
    }
}

/// Checks a request id, a UUID (RFC 9562) of 8-4-4-4-12 hexadecimal digits, and returns it in lower case.
pub(crate) fn parse_request_id(id: &str) -> Result<String, String> {
    let malformed = || "must be a UUID such as 6b1e7f0c-1f5d-4a3e-9d55-0c7f6b1b2a10".to_owned();
    if id.len() != uuid::fmt::Hyphenated::LENGTH {
        return Err(malformed());
    }
    let uuid = Uuid::try_parse(id).map_err(|_| malformed())?;
    if uuid.is_nil() {
        // All posts of a client that doesn't set the id would be duplicates of each other.
        return Err("must not be the nil UUID".into());
    }
    Ok(uuid.as_hyphenated().to_string())
}

/// Checks a list of up to 16 http or https URLs; returns the violations as `(field, description)`.
pub(crate) fn check_urls(field: &str, urls: &[String]) -> Vec<(String, String)> {
    if urls.len() > URLS_MAX {
        return vec![(
            field.into(),
            format!("must contain at most {URLS_MAX} URLs, contains {}", urls.len()),
        )];
    }
    let violations = urls
        .iter()
        .enumerate()
        .filter_map(|(i, url)| Some((i, check_http_url(url).err()?)));
    violations
        .map(|(i, description)| (format!("{field}[{i}]"), description))
        .collect()
}

fn check_http_url(url: &str) -> Result<(), String> {
    if url.len() > URL_BYTES_MAX {
        return Err(format!(
            "must be at most {URL_BYTES_MAX} bytes long, is {}",
            url.len()
        ));
    }
    // The URL parser trims and drops these characters silently, but the caller's string is stored unchanged.
    if url.chars().any(|c| c.is_control() || c == ' ') {
        return Err("must not contain spaces or control characters".into());
    }
    match Url::parse(url) {
        Ok(parsed) if !matches!(parsed.scheme(), "http" | "https") => {
            Err(format!("must be an http or https URL, is {}", parsed.scheme()))
        }
        Ok(parsed) if parsed.host_str().is_none_or(str::is_empty) => Err("must have a host".into()),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("must be an http or https URL: {error}")),
    }
}

/// Checks the title of a push: up to 120 characters.
pub(crate) fn check_push_title(title: &str) -> Result<(), String> {
    check_no_control_characters(title)?;
    match title.chars().count() {
        ..=PUSH_TITLE_CHARACTERS_MAX => Ok(()),
        count => Err(format!(
            "must be at most {PUSH_TITLE_CHARACTERS_MAX} characters long, is {count}"
        )),
    }
}

/// Checks the collapse key of a push: up to 64 bytes.
pub(crate) fn check_collapse_key(key: &str) -> Result<(), String> {
    check_no_control_characters(key)?;
    match key.len() {
        ..=COLLAPSE_KEY_BYTES_MAX => Ok(()),
        bytes => Err(format!(
            "must be at most {COLLAPSE_KEY_BYTES_MAX} bytes long, is {bytes}"
        )),
    }
}

/// Checks the custom data of a push. The bounds leave room for the text in a Web Push of 4,096 bytes, also when every
/// character is escaped in JSON.
pub(crate) fn check_push_data(data: &BTreeMap<String, String>) -> Result<(), String> {
    if data.len() > PUSH_DATA_ENTRIES_MAX {
        return Err(format!(
            "must have at most {PUSH_DATA_ENTRIES_MAX} entries, has {}",
            data.len()
        ));
    }
    let bytes: usize = data.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > PUSH_DATA_BYTES_MAX {
        return Err(format!(
            "must have at most {PUSH_DATA_BYTES_MAX} bytes of keys and values, has {bytes}"
        ));
    }
    for (key, value) in data {
        let in_key = |c: u8| c.is_ascii_alphanumeric() || b"_-.".contains(&c);
        if !(1..=PUSH_DATA_KEY_BYTES_MAX).contains(&key.len()) || !key.bytes().all(in_key) {
            return Err(format!(
                "must have keys of 1 to {PUSH_DATA_KEY_BYTES_MAX} letters, digits, `_`, `-` and `.`"
            ));
        }
        check_no_control_characters(value).map_err(|error| format!("{error} in the value of {key}"))?;
    }
    Ok(())
}

fn check_no_control_characters(text: &str) -> Result<(), String> {
    if text.chars().any(char::is_control) {
        return Err("must not contain control characters".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_counted_in_characters() {
        assert_eq!(check_text("x"), Ok(()));
        assert_eq!(check_text(&"ü".repeat(10_000)), Ok(()));
        assert_eq!(check_text(""), Err("must not be empty".into()));
        assert_eq!(
            check_text(&"ü".repeat(10_001)),
            Err("must be at most 10000 characters long, is 10001".into())
        );
    }

    #[test]
    fn a_request_id_is_a_uuid_of_any_case() {
        let id = "6b1e7f0c-1f5d-4a3e-9d55-0c7f6b1b2a10";
        assert_eq!(parse_request_id(id), Ok(id.into()));
        assert_eq!(parse_request_id(&id.to_uppercase()), Ok(id.into()));
        for invalid in [
            "1",
            "deleted",
            "6b1e7f0c1f5d4a3e9d550c7f6b1b2a10",
            "{6b1e7f0c-1f5d-4a3e-9d55-0c7f6b1b2a10}",
            "6b1e7f0c-1f5d-4a3e-9d55-0c7f6b1b2a1z",
            "00000000-0000-0000-0000-000000000000",
        ] {
            assert!(parse_request_id(invalid).is_err(), "{invalid}");
        }
    }

    #[test]
    fn a_link_is_an_http_url_of_bounded_length() {
        let violated_fields = |urls_given: &[&str]| {
            let given: Vec<String> = urls_given.iter().map(|u| (*u).to_owned()).collect();
            check_urls("links", &given)
                .into_iter()
                .map(|(field, _)| field)
                .collect::<Vec<_>>()
        };
        assert!(
            violated_fields(&[
                "http://example.org",
                "https://example.org/a?b=c#d",
                "https://[::1]:8080/"
            ])
            .is_empty()
        );
        let long = format!("https://example.org/{}", "a".repeat(2_048));
        for invalid in [
            "",
            "example.org",
            "/path",
            "ftp://example.org",
            "javascript:alert(1)",
            "https://",
            "https://exa mple.org",
            " https://example.org",
            "https://example.org/\n",
            &long,
        ] {
            assert_eq!(
                violated_fields(&["https://example.org", invalid]),
                ["links[1]"],
                "{invalid:?}"
            );
        }
        assert_eq!(
            violated_fields(&["https://example.org"; 16]),
            Vec::<String>::new()
        );
        assert_eq!(violated_fields(&["https://example.org"; 17]), ["links"]);
    }

    #[test]
    fn the_content_of_a_push_has_bounds() {
        assert_eq!(check_push_title(&"ü".repeat(120)), Ok(()));
        assert!(check_push_title(&"ü".repeat(121)).is_err());
        assert!(check_push_title("a\nb").is_err());
        assert_eq!(check_collapse_key(&"x".repeat(64)), Ok(()));
        assert!(check_collapse_key(&"x".repeat(65)).is_err());
        assert!(check_collapse_key("a\u{7f}").is_err());

        let data = |entries: &[(&str, &str)]| -> BTreeMap<String, String> {
            let entries = entries.iter();
            entries
                .map(|(key, value)| ((*key).into(), (*value).into()))
                .collect()
        };
        let value = "v".repeat(768 - 64);
        assert_eq!(check_push_data(&data(&[(&"k".repeat(64), &value)])), Ok(()));
        assert_eq!(check_push_data(&data(&[("match.id_1-a", "")])), Ok(()));
        for invalid in [
            data(&[("k", &"v".repeat(768))]),
            data(&[("", "v")]),
            data(&[(&"k".repeat(65), "v")]),
            data(&[("a b", "v")]),
            data(&[("k", "a\tb")]),
        ] {
            assert!(check_push_data(&invalid).is_err(), "{invalid:?}");
        }
        let many: BTreeMap<_, _> = (0..17).map(|n| (n.to_string(), String::new())).collect();
        assert!(check_push_data(&many).is_err());
    }
}
