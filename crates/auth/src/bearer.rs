//! The credential in the headers of a call (RFC 6750, section 2.1).

use http::{HeaderMap, header::AUTHORIZATION};

use crate::Denied;

/// Longest credential, bytes. Tokens of common issuers have 1 to 4 KiB.
const CREDENTIAL_BYTES_MAX: usize = 16 << 10;
const SCHEME: &str = "bearer";

/// The credential of a call.
pub(crate) fn credential(headers: &HeaderMap) -> Result<&str, Denied> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (value, more) = (values.next().ok_or(Denied::Missing)?, values.next());
    if more.is_some() {
        return Err(Denied::Invalid);
    }
    let value = value.to_str().map_err(|_| Denied::Invalid)?;
    let (scheme, credential) = value.split_once(' ').ok_or(Denied::Invalid)?;
    let credential = credential.trim_matches(' ');
    let is_valid = scheme.eq_ignore_ascii_case(SCHEME)
        && (1..=CREDENTIAL_BYTES_MAX).contains(&credential.len())
        && credential.bytes().all(|byte| byte.is_ascii_graphic());
    if is_valid {
        Ok(credential)
    } else {
        Err(Denied::Invalid)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[&str]) -> HeaderMap {
        values
            .iter()
            .map(|value| (AUTHORIZATION, HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    #[test]
    fn only_one_bearer_credential_is_taken() {
        for value in ["Bearer abc", "bearer abc", "BEARER  abc "] {
            assert_eq!(credential(&of(&[value])), Ok("abc"), "{value}");
        }
        assert_eq!(credential(&of(&[])), Err(Denied::Missing));
        let long = format!("Bearer {}", "a".repeat(CREDENTIAL_BYTES_MAX + 1));
        for values in [
            &["Basic abc"] as &[&str],
            &["Bearer"],
            &["Bearer "],
            &["abc"],
            &["Bearer a b"],
            &["Bearer abc", "Bearer abc"],
            &[&long],
        ] {
            assert_eq!(credential(&of(values)), Err(Denied::Invalid), "{values:?}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_a_credential_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let Ok(value) = HeaderValue::from_bytes(&bytes) else { return Ok(()) };
            let headers: HeaderMap = [(AUTHORIZATION, value)].into_iter().collect();
            match credential(&headers) {
                Ok(found) => prop_assert!(!found.is_empty() && !found.contains(' ')),
                Err(denied) => prop_assert_eq!(denied, Denied::Invalid),
            }
        }
    }
}
