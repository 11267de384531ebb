//! Validation of a post's fields.

use std::time::Duration;

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
}
