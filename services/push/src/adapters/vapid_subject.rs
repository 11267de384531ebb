//! The VAPID subject: the contact of the operator in tokens for push services (RFC 8292 §2.1).

use std::net::IpAddr;

use url::{Host, Url};

/// Checks a subject as push services do. Empty is allowed: then tokens have no subject.
pub(crate) fn check(subject: &str) -> Result<(), String> {
    if subject.is_empty() {
        return Ok(());
    }
    let error = |what: &str| {
        Err(format!(
            "push.vapid_subject {what}, is {subject:?}; set it to a contact that push services can reach, such as \
             mailto:ops@example.org or https://example.org/contact"
        ))
    };
    if subject.chars().any(herald_model::is_invisible) {
        return error("must not contain blanks or control characters");
    }
    match scheme_and_rest(subject) {
        Some(("mailto", address)) if is_mail_address(address) => Ok(()),
        Some(("mailto", _)) => error("must have one mail address with a public domain after mailto:"),
        Some(("https", _)) if is_public_url(subject) => Ok(()),
        Some(("https", _)) => error("must have a public host after https://"),
        _ => error("must be a mailto: or https: URL"),
    }
}

/// A subject with its scheme in lower case: some push services compare it so.
pub(crate) fn normalize(subject: &str) -> String {
    match scheme_and_rest(subject) {
        Some((scheme, rest)) => format!("{scheme}:{rest}"),
        None => subject.to_owned(),
    }
}

/// The scheme, if it is one of the two allowed ones, in lower case, and the rest after its colon.
fn scheme_and_rest(subject: &str) -> Option<(&'static str, &str)> {
    let (scheme, rest) = subject.split_once(':')?;
    let known = ["mailto", "https"].into_iter();
    known
        .into_iter()
        .find(|known| scheme.eq_ignore_ascii_case(known))
        .map(|known| (known, rest))
}

/// Whether this is one mail address, without a name, angle brackets or header fields, at a public domain.
fn is_mail_address(address: &str) -> bool {
    let Some((local, domain)) = address.rsplit_once('@') else {
        return false;
    };
    let is_local = !local.is_empty()
        && local.len() <= 64
        && local
            .chars()
            .all(|c| !c.is_ascii() || c.is_ascii_alphanumeric() || "!#$%&'*+-=?^_`{|}~.".contains(c))
        && !local.starts_with('.')
        && !local.ends_with('.')
        && !local.contains("..");
    let is_plain = domain
        .chars()
        .all(|c| !c.is_ascii() || c.is_ascii_alphanumeric() || "-.".contains(c));
    // A domain follows the rules of a host in a URL.
    is_local && is_plain && !is_ip_address(domain) && is_public_url(&format!("https://{domain}/"))
}

fn is_ip_address(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

fn is_public_url(text: &str) -> bool {
    let rest = text.split_once("://").map_or("", |(_, rest)| rest);
    // The parser ignores missing and additional slashes.
    if rest.is_empty() || rest.starts_with('/') {
        return false;
    }
    let Ok(url) = Url::parse(text) else { return false };
    let policy = herald_push_endpoint::Policy::default();
    let has_name = matches!(url.host(), Some(Host::Domain(_)));
    has_name && herald_push_endpoint::parse_url(text, policy).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_a_contact_that_push_services_can_reach() {
        for valid in [
            "",
            "mailto:ops@example.org",
            "MAILTO:ops@example.org",
            "MailTo:first.last+push@mail.example.co.uk",
            "mailto:ops@bücher.example",
            "https://example.org",
            "HTTPS://Example.org:8443/contact?a=b",
        ] {
            assert_eq!(check(valid), Ok(()), "{valid}");
        }
        for invalid in [
            "ops@example.org",
            "mailto",
            "mailto:",
            "mailto:ops",
            "mailto:@example.org",
            "mailto:ops@",
            "mailto:ops@localhost",
            "mailto:ops@host.localhost",
            "mailto:ops@example",
            "mailto:ops@127.0.0.1",
            "mailto:ops@8.8.8.8",
            "mailto:ops@.example.org",
            "mailto:ops@example..org",
            "mailto:.ops@example.org",
            "mailto: ops@example.org",
            "mailto:ops@example.org ",
            "mailto:<ops@example.org>",
            "mailto:Ops <ops@example.org>",
            "mailto:a@example.org,b@example.org",
            "mailto:ops@example.org?subject=x",
            "mailto://ops@example.org",
            "mailto:ops@exam\u{200b}ple.org",
            "http://example.org",
            "https:",
            "https://",
            "https:example.org",
            "https:///example.org",
            "https://localhost",
            "https://localhost:8443/",
            "https://printer.local/",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://8.8.8.8/",
            "https://user@example.org/",
            "https://exam ple.org/",
            "ftp://example.org",
            "tel:+15550100",
        ] {
            assert!(check(invalid).is_err(), "{invalid}");
        }
    }

    #[test]
    fn the_scheme_is_sent_in_lower_case() {
        assert_eq!(normalize("MailTo:Ops@example.org"), "mailto:Ops@example.org");
        assert_eq!(normalize("HTTPS://Example.org/A"), "https://Example.org/A");
        assert_eq!(normalize(""), "");
    }
}
