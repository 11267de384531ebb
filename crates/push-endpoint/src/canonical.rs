//! The canonical form of an endpoint URL: equivalent spellings of one endpoint have the same canonical form.

use std::fmt::Write as _;

use url::Url;

/// The canonical form of a parsed http or https URL.
///
/// The parser (WHATWG URL) has already made scheme and host lower case, encoded an internationalised host name, removed
/// the default port and resolved dot segments. This removes the dot after the host name and an empty query, and
/// normalises the percent-encoding of path and query (RFC 3986 §6.2.2). `None` if the host name has an empty label.
pub(crate) fn canonical(mut url: Url) -> Option<Url> {
    if let Some(name) = url.domain().map(str::to_owned) {
        let name = name.strip_suffix('.').unwrap_or(&name);
        if name.split('.').any(str::is_empty) {
            return None;
        }
        url.set_host(Some(name)).ok()?;
    }
    let path = normalize_encoding(url.path());
    url.set_path(&path);
    let query = url.query().filter(|query| !query.is_empty());
    let query = query.map(normalize_encoding);
    url.set_query(query.as_deref());
    Some(url)
}

/// Decodes percent-encoded characters that need no encoding, writes the digits of the others in upper case, and encodes
/// the characters that a URL may not have but parsers leave as they are.
fn normalize_encoding(text: &str) -> String {
    let mut normal = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let encoded = rest
            .get(1..3)
            .filter(|digits| c == '%' && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let (byte, length) = match encoded {
            Some(byte) => (Some(byte), 3),
            None => (
                u8::try_from(c).ok().filter(|byte| is_unencoded(*byte)),
                c.len_utf8(),
            ),
        };
        match byte {
            Some(byte) if is_unreserved(byte) => normal.push(byte.into()),
            // Writing to a `String` can't fail.
            Some(byte) => _ = write!(normal, "%{byte:02X}"),
            None => normal.push(c),
        }
        rest = &rest[length..];
    }
    normal
}

/// Whether a character means the same with and without percent-encoding (RFC 3986 §2.3).
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Whether a character must be percent-encoded (RFC 3986 §2) although URL parsers accept it.
fn is_unencoded(byte: u8) -> bool {
    b"\"<>\\^`{|}".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical_text(url: &str) -> String {
        canonical(url.parse().unwrap()).unwrap().into()
    }

    #[test]
    fn every_spelling_of_an_endpoint_has_one_form() {
        let same: &[(&str, &[&str])] = &[
            (
                "https://push.example.com/~a/b?c=d",
                &[
                    "HTTPS://PUSH.Example.COM/~a/b?c=d",
                    "https://push.example.com:443/~a/b?c=d",
                    "https://push.example.com./~a/b?c=d",
                    "https://push.example.com.:443/%7Ea/%62?%63=d",
                    "https://push.example.com/%7ea/x/../b?c=d",
                    "https://push.example.com/./~a/%2e/b?c=d",
                    "https:\\\\push.example.com\\~a\\b?c=d",
                    "https://%70ush.example.com/~a/b?c=d",
                    "https:push.example.com/~a/b?c=d",
                ],
            ),
            (
                "https://push.example.com/",
                &["https://push.example.com", "https://push.example.com/?"],
            ),
            ("http://push.example.com/", &["http://push.example.com:80"]),
            (
                "https://xn--bcher-kva.example/%C3%BC",
                &[
                    "https://bücher.example/ü",
                    "https://BÜCHER.example/%c3%bc",
                    "https://bu\u{308}cher.example/ü",
                ],
            ),
            ("https://a.example/%2F%3A%25", &["https://a.example/%2f%3a%25"]),
            (
                "https://a.example/%7C%5E%60?%7B%7D",
                &["https://a.example/|^`?{}"],
            ),
            ("https://1.2.3.4/", &["https://0x01.2.772/", "https://16909060"]),
            ("https://[2606:4700::1]/", &["https://[2606:4700:0:0::0001]"]),
        ];
        for (expected, spellings) in same {
            assert_eq!(canonical_text(expected), *expected);
            for spelling in *spellings {
                assert_eq!(canonical_text(spelling), *expected, "{spelling}");
            }
        }
    }

    #[test]
    fn different_endpoints_stay_different() {
        let different = [
            "https://a.example/",
            "https://a.example:8443/",
            "http://a.example/",
            "https://a.example/A",
            "https://a.example/a",
            "https://a.example/a/",
            "https://a.example/a%2Fb",
            "https://a.example/a/b",
            "https://a.example/%",
            "https://a.example/%25",
            "https://a.example/%257E",
            "https://a.example/?a",
            "https://a.example/?a=",
        ];
        for (index, url) in different.iter().enumerate() {
            for other in &different[..index] {
                assert_ne!(canonical_text(url), canonical_text(other));
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn a_canonical_url_is_its_own_canonical_form(path in "(/[ -~ü]{0,8}){0,3}") {
            let url = format!("https://a.example{path}").parse().unwrap();
            let once = canonical(url).unwrap();
            let again = canonical(once.as_str().parse().unwrap()).unwrap();
            proptest::prop_assert_eq!(&once, &again);
        }
    }
}
