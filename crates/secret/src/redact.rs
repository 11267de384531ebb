//! Hides the passwords in URLs.

/// Text printed in place of a secret.
pub(crate) const HIDDEN: &str = "[hidden]";

/// Schemes whose URLs have a user name before `@` if there is no `:`. In other URLs, such as those of NATS, that text
/// is a token.
const USER_SCHEMES: [&str; 6] = ["postgres", "postgresql", "redis", "rediss", "valkey", "valkeys"];

/// Whether a printed configuration has this text instead of a secret or of a URL with credentials.
pub fn is_placeholder(text: &str) -> bool {
    text == HIDDEN
        || [":", "://"]
            .iter()
            .any(|before| text.contains(&format!("{before}{HIDDEN}@")))
        || text.contains(&format!("={HIDDEN}"))
}

/// Redacts the password of `nats://user:password@host`, the token of `nats://token@host`, and passwords in the query;
/// commas separate several URLs. `None` if the text has none of these.
pub fn password(text: &str) -> Option<String> {
    let urls: Vec<&str> = text.split(',').collect();
    if urls.len() > 1 && urls.iter().all(|url| url.contains("://")) {
        let redacted: Vec<Option<String>> = urls.iter().map(|url| one(url)).collect();
        return redacted.iter().any(Option::is_some).then(|| {
            let urls = urls.iter().zip(redacted);
            let urls: Vec<String> = urls
                .map(|(url, redacted)| redacted.unwrap_or_else(|| (*url).to_owned()))
                .collect();
            urls.join(",")
        });
    }
    one(text)
}

fn one(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(authority_end);
    let without_credentials = authority.rsplit_once('@').and_then(|(credentials, host)| {
        Some(match credentials.split_once(':') {
            Some((user, _)) => format!("{user}:{HIDDEN}@{host}"),
            None if USER_SCHEMES.contains(&scheme.trim()) => return None,
            None => format!("{HIDDEN}@{host}"),
        })
    });
    let without_query = query(rest);
    if without_credentials.is_none() && without_query.is_none() {
        return None;
    }
    Some(format!(
        "{scheme}://{}{}",
        without_credentials.as_deref().unwrap_or(authority),
        without_query.as_deref().unwrap_or(rest),
    ))
}

/// Redacts the parameters of a query that are passwords.
fn query(rest: &str) -> Option<String> {
    let (path, query) = rest.split_once('?')?;
    let mut found = false;
    let parameters: Vec<String> = query
        .split('&')
        .map(|parameter| match parameter.split_once('=') {
            Some((name, value)) if name.contains("password") && !value.is_empty() => {
                found = true;
                format!("{name}={HIDDEN}")
            }
            _ => parameter.to_owned(),
        })
        .collect();
    found.then(|| format!("{path}?{}", parameters.join("&")))
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
            "nats://host:4222/a@b",
            "not a url, me@example.org",
            "postgres://me@host/db",
            "postgres://host/db?sslmode=require",
        ] {
            assert_eq!(password(plain), None);
        }
    }
}
