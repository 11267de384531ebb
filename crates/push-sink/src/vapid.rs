//! Verification of VAPID tokens (RFC 8292), as a push service does it.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use p256::ecdsa::{Signature, VerifyingKey, signature::Verifier};
use serde::Deserialize;

/// Maximum validity of a token (RFC 8292 §2).
const VALIDITY_SECONDS_MAX: i64 = 24 * 60 * 60;

/// Why a VAPID token was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum VapidError {
    #[error("the header `Authorization: vapid t=…, k=…` is missing")]
    Missing,
    #[error("the token or the key is malformed")]
    Malformed,
    #[error("the signature does not match the key")]
    Signature,
    #[error("the token has another audience")]
    Audience,
    #[error("the token has expired, or is valid for more than 24 hours")]
    Expiry,
    #[error("the key is not the one of the subscription")]
    Key,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
}

#[derive(Deserialize)]
struct Claims {
    aud: String,
    exp: i64,
}

/// Verifies an `Authorization` header. `key` is the public key that the subscription is restricted to, if any.
pub(crate) fn verify(
    authorization: Option<&str>,
    audience: &str,
    now_seconds: i64,
    key: Option<&[u8]>,
) -> Result<(), VapidError> {
    let (token, public_key) = authorization.and_then(parse_header).ok_or(VapidError::Missing)?;
    let public_key = BASE64URL.decode(public_key).map_err(|_| VapidError::Malformed)?;
    if key.is_some_and(|key| key != public_key) {
        return Err(VapidError::Key);
    }
    let verifier = VerifyingKey::from_sec1_bytes(&public_key).map_err(|_| VapidError::Malformed)?;
    let (signed, signature) = token.rsplit_once('.').ok_or(VapidError::Malformed)?;
    let signature = BASE64URL.decode(signature).map_err(|_| VapidError::Malformed)?;
    let signature = Signature::from_slice(&signature).map_err(|_| VapidError::Malformed)?;
    verifier
        .verify(signed.as_bytes(), &signature)
        .map_err(|_| VapidError::Signature)?;

    let (header, claims) = signed.split_once('.').ok_or(VapidError::Malformed)?;
    let header: Header = decode_json(header).ok_or(VapidError::Malformed)?;
    if header.alg != "ES256" {
        return Err(VapidError::Malformed);
    }
    let claims: Claims = decode_json(claims).ok_or(VapidError::Malformed)?;
    if claims.aud != audience {
        return Err(VapidError::Audience);
    }
    if claims.exp <= now_seconds || claims.exp > now_seconds + VALIDITY_SECONDS_MAX {
        return Err(VapidError::Expiry);
    }
    Ok(())
}

fn parse_header(authorization: &str) -> Option<(&str, &str)> {
    let parameters = authorization.strip_prefix("vapid ")?;
    let value = |name| {
        parameters
            .split(',')
            .find_map(|part| part.trim().strip_prefix(name))
    };
    Some((value("t=")?, value("k=")?))
}

fn decode_json<T: serde::de::DeserializeOwned>(part: &str) -> Option<T> {
    serde_json::from_slice(&BASE64URL.decode(part).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use p256::{
        ecdsa::{SigningKey, signature::Signer},
        elliptic_curve::rand_core::OsRng,
    };

    use super::*;

    fn token(key: &SigningKey, claims: &str) -> String {
        let signed = format!(
            "{}.{}",
            BASE64URL.encode(r#"{"typ":"JWT","alg":"ES256"}"#),
            BASE64URL.encode(claims)
        );
        let signature: Signature = key.sign(signed.as_bytes());
        let public_key = key.verifying_key().to_encoded_point(false);
        format!(
            "vapid t={signed}.{}, k={}",
            BASE64URL.encode(signature.to_bytes()),
            BASE64URL.encode(public_key.as_bytes())
        )
    }

    #[test]
    fn only_a_valid_token_for_this_audience_and_key_is_accepted() {
        let key = SigningKey::random(&mut OsRng);
        let own = key.verifying_key().to_encoded_point(false);
        let good = token(&key, r#"{"aud":"https://push.example","exp":1000}"#);
        let check =
            |authorization: &str, now, key| verify(Some(authorization), "https://push.example", now, key);

        assert_eq!(check(&good, 500, None), Ok(()));
        assert_eq!(check(&good, 500, Some(own.as_bytes())), Ok(()));
        assert_eq!(check(&good, 500, Some(b"other")), Err(VapidError::Key));
        assert_eq!(check(&good, 1000, None), Err(VapidError::Expiry));
        assert_eq!(check(&good, 1000 - 24 * 3600 - 1, None), Err(VapidError::Expiry));
        assert_eq!(
            check(&good.replace("vapid", "Bearer"), 500, None),
            Err(VapidError::Missing)
        );
        assert_eq!(
            check(&token(&key, r#"{"aud":"https://other","exp":1000}"#), 500, None),
            Err(VapidError::Audience)
        );
        let (_, stolen) = good.split_once("t=").unwrap();
        let (stolen, _) = stolen.split_once(',').unwrap();
        let other = token(&SigningKey::random(&mut OsRng), "{}");
        let (_, k) = other.split_once(" k=").unwrap();
        assert_eq!(
            check(&format!("vapid t={stolen}, k={k}"), 500, None),
            Err(VapidError::Signature)
        );
        assert_eq!(
            super::verify(None, "https://push.example", 500, None),
            Err(VapidError::Missing)
        );
    }
}
