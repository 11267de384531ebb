//! Hides the passwords in URLs.

/// Text printed in place of a secret.
pub(crate) const HIDDEN: &str = "[hidden]";

/// Schemes whose URLs have a user name before `@` if there is no `:`. In other URLs, such as those of NATS, that text
/// is a token.
const USER_SCHEMES: [&str; 6] = ["postgres", "postgresql", "redis", "rediss", "valkey", "valkeys"];

/// Schemes of URLs whose path can have an `@`.
const WEB_SCHEMES: [&str; 2] = ["http", "https"];

/// Whether a printed configuration has this text instead of a secret or of a URL with credentials.
pub fn is_placeholder(text: &str) -> bool {
    text.contains(HIDDEN)
}

/// Redacts the password of `nats://user:password@host`, the token of `nats://token@host`, and passwords in the query;
/// commas separate several URLs. `None` if the text has none of these.
///
/// Of a URL that can be read in several ways, such as one whose password has an unescaped `#`, all but the scheme is
/// hidden.
pub fn password(text: &str) -> Option<String> {
    let urls = split_list(text);
    let redacted: Vec<Option<String>> = urls.iter().map(|url| one(url)).collect();
    redacted.iter().any(Option::is_some).then(|| {
        let urls = urls.iter().zip(redacted);
        let urls: Vec<String> = urls
            .map(|(url, redacted)| redacted.unwrap_or_else(|| (*url).to_owned()))
            .collect();
        urls.join(",")
    })
}

/// Checks that a URL, or a text without a scheme that is taken for one, can be read in one way only. The error says what
/// to do, and has no part of the URL.
pub(crate) fn check(text: &str) -> Result<(), &'static str> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let (authority, tail) = split_authority(rest);
    if has_stray_at(scheme, authority, tail) {
        return Err(
            "has an @ after a /, ? or #: in the user name and the password write these characters percent-encoded, \
             @ as %40, / as %2F, ? as %3F and # as %23",
        );
    }
    if !ports_are_numbers(authority) {
        return Err(
            "has a port that is no number: if that is a part of a password, write the characters @ / ? # : , of the \
             password percent-encoded, as %40 %2F %3F %23 %3A %2C",
        );
    }
    Ok(())
}

/// Splits a list at the commas before a scheme. Other commas are between hosts, or in a password.
fn split_list(text: &str) -> Vec<&str> {
    let mut urls = Vec::new();
    let mut rest = text;
    let mut from = 0;
    while let Some(comma) = rest[from..].find(',').map(|at| from + at) {
        if starts_with_scheme(&rest[comma + 1..]) {
            urls.push(&rest[..comma]);
            rest = &rest[comma + 1..];
            from = 0;
        } else {
            from = comma + 1;
        }
    }
    urls.push(rest);
    urls
}

fn starts_with_scheme(text: &str) -> bool {
    text.trim_start().split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty()
            && scheme
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    })
}

fn one(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let (authority, tail) = split_authority(rest);
    if has_stray_at(scheme.trim(), authority, tail) || !ports_are_numbers(authority) {
        return Some(format!("{scheme}://{HIDDEN}"));
    }
    let without_credentials = authority.rsplit_once('@').and_then(|(credentials, host)| {
        Some(match credentials.split_once(':') {
            Some((user, _)) => format!("{user}:{HIDDEN}@{host}"),
            None if USER_SCHEMES.contains(&scheme.trim()) => return None,
            None => format!("{HIDDEN}@{host}"),
        })
    });
    let without_query = query(tail);
    if without_credentials.is_none() && without_query.is_none() {
        return None;
    }
    Some(format!(
        "{scheme}://{}{}",
        without_credentials.as_deref().unwrap_or(authority),
        without_query.as_deref().unwrap_or(tail),
    ))
}

/// The authority of a URL and what follows it, given what follows `://`.
fn split_authority(rest: &str) -> (&str, &str) {
    rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()))
}

/// Whether an `@` is after the authority: then the end of the authority can be in a password. An address of the web
/// without user and port can have one in its path.
fn has_stray_at(scheme: &str, authority: &str, tail: &str) -> bool {
    let is_web_page = WEB_SCHEMES.contains(&scheme) && !authority.contains([':', '@']);
    tail.contains('@') && !is_web_page
}

/// Whether the hosts of an authority, between commas, have ports of digits, or none. What is no port can be the beginning
/// of a password.
fn ports_are_numbers(authority: &str) -> bool {
    let hosts = authority.rsplit('@').next().unwrap_or_default();
    hosts.split(',').all(|host| {
        let after_address = host.rsplit(']').next().unwrap_or_default();
        match after_address.split_once(':') {
            Some((_, port)) => port.trim_end().chars().all(|c| c.is_ascii_digit()),
            None => true,
        }
    })
}

/// Redacts the parameters of a query that are passwords.
fn query(rest: &str) -> Option<String> {
    let (path, query) = rest.split_once('?')?;
    let mut found = false;
    let parameters: Vec<String> = query
        .split('&')
        .map(|parameter| match parameter.split_once('=') {
            Some((name, value)) if is_secret(name) && !value.is_empty() => {
                found = true;
                format!("{name}={HIDDEN}")
            }
            _ => parameter.to_owned(),
        })
        .collect();
    found.then(|| format!("{path}?{}", parameters.join("&")))
}

/// Whether the value of a parameter with this name is a secret.
fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    ["password", "passwd", "token", "secret"]
        .iter()
        .any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_urls_are_redacted() {
        for (url, redacted) in [
            ("nats://me:p@ss@host:4222", "nats://me:[hidden]@host:4222"),
            ("nats://token@host", "nats://[hidden]@host"),
            ("redis://:secret@host", "redis://:[hidden]@host"),
            (
                "nats://me:a@one:4222, nats://me:b@two",
                "nats://me:[hidden]@one:4222, nats://me:[hidden]@two",
            ),
            (
                "postgres://host/db?user=me&password=a&sslmode=require",
                "postgres://host/db?user=me&password=[hidden]&sslmode=require",
            ),
            ("postgres://me:a@one,two/db", "postgres://me:[hidden]@one,two/db"),
        ] {
            assert_eq!(password(url).as_deref(), Some(redacted));
            assert!(is_placeholder(redacted), "{redacted}");
        }
        for plain in [
            "https://example.org/@me",
            "https://[::1]:4317/path",
            "nats://one:4222,two:4222",
            "not a url, me@example.org",
            "postgres://me@host/db",
            "postgres://host/db?sslmode=require",
        ] {
            assert_eq!(password(plain), None);
        }
    }

    #[test]
    fn a_url_that_can_be_read_in_several_ways_is_hidden_and_refused() {
        for (url, redacted) in [
            ("postgres://u:p@ss#hunter2@127.0.0.1:1/x", "postgres://[hidden]"),
            ("postgres://u:p#hunter2@h/x", "postgres://[hidden]"),
            ("redis://:12/hunter2@h", "redis://[hidden]"),
            ("redis://:p?hunter2@h", "redis://[hidden]"),
            ("redis:///u:hunter2@h:1", "redis://[hidden]"),
            ("nats://u:p/hunter2@h:4222", "nats://[hidden]"),
            ("nats://u:hunter2", "nats://[hidden]"),
            ("http://u:p#hunter2@h", "http://[hidden]"),
            ("postgres://h/db?user=u&password=a@hunter2", "postgres://[hidden]"),
        ] {
            assert_eq!(password(url).as_deref(), Some(redacted));
            assert!(is_placeholder(redacted));
            let reason = check(url).unwrap_err();
            assert!(reason.contains("%40") && !reason.contains("hunter2"), "{reason}");
        }
        assert!(check("nats//u:hunter2@h").is_err());
        for url in [
            "postgres://u:p%23x@h:1/db",
            "nats://u:p@ss@h",
            "h:4222",
            "u:p@h",
            "redis://[::1]:6379",
            "",
        ] {
            assert_eq!(check(url), Ok(()), "{url}");
        }
    }

    #[test]
    fn each_url_of_a_list_is_redacted() {
        for (urls, redacted) in [
            (
                "nats://u:p,hunter2@one:4222,nats://u:p,hunter2@two",
                "nats://u:[hidden]@one:4222,nats://u:[hidden]@two",
            ),
            (
                "nats://u:p#hunter2@one:4222, nats://two:4222",
                "nats://[hidden], nats://two:4222",
            ),
            (
                "nats://one:4222,u:hunter2@two:4222",
                "nats://one:[hidden]@two:4222",
            ),
        ] {
            assert_eq!(password(urls).as_deref(), Some(redacted));
        }
    }
}
