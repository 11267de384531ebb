//! The check of a sender's identity (RFC 8292), as a push service does it.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use p256::ecdsa::{Signature, VerifyingKey, signature::Verifier};
use serde::Deserialize;

/// A token may be valid for at most this long.
const VALIDITY_SECONDS_MAX: i64 = 24 * 60 * 60;

/// Why a sender is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rejected {
    #[error("no `Authorization: vapid t=…, k=…`")]
    Missing,
    #[error("the token or the key is malformed")]
    Malformed,
    #[error("the signature is not by the key")]
    Signature,
    #[error("the token is for another push service")]
    Audience,
    #[error("the token has run out, or is valid for over 24 hours")]
    Expiry,
    #[error("the key is not the one subscribed for")]
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

/// Checks an `Authorization` header. `key` is the sender's public key that the subscription was made for, if it was.
pub(crate) fn check(
    authorization: Option<&str>,
    audience: &str,
    now_seconds: i64,
    key: Option<&[u8]>,
) -> Result<(), Rejected> {
    let (token, public_key) = authorization.and_then(parts).ok_or(Rejected::Missing)?;
    let public_key = BASE64URL.decode(public_key).map_err(|_| Rejected::Malformed)?;
    if key.is_some_and(|key| key != public_key) {
        return Err(Rejected::Key);
    }
    let verifier = VerifyingKey::from_sec1_bytes(&public_key).map_err(|_| Rejected::Malformed)?;
    let (signed, signature) = token.rsplit_once('.').ok_or(Rejected::Malformed)?;
    let signature = BASE64URL.decode(signature).map_err(|_| Rejected::Malformed)?;
    let signature = Signature::from_slice(&signature).map_err(|_| Rejected::Malformed)?;
    verifier
        .verify(signed.as_bytes(), &signature)
        .map_err(|_| Rejected::Signature)?;

    let (header, claims) = signed.split_once('.').ok_or(Rejected::Malformed)?;
    let header: Header = json(header).ok_or(Rejected::Malformed)?;
    if header.alg != "ES256" {
        return Err(Rejected::Malformed);
    }
    let claims: Claims = json(claims).ok_or(Rejected::Malformed)?;
    if claims.aud != audience {
        return Err(Rejected::Audience);
    }
    if claims.exp <= now_seconds || claims.exp > now_seconds + VALIDITY_SECONDS_MAX {
        return Err(Rejected::Expiry);
    }
    Ok(())
}

fn parts(authorization: &str) -> Option<(&str, &str)> {
    let parameters = authorization.strip_prefix("vapid ")?;
    let value = |name| {
        parameters
            .split(',')
            .find_map(|part| part.trim().strip_prefix(name))
    };
    Some((value("t=")?, value("k=")?))
}

fn json<T: serde::de::DeserializeOwned>(part: &str) -> Option<T> {
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
    fn only_a_fresh_token_for_this_service_by_the_right_key_is_believed() {
        let key = SigningKey::random(&mut OsRng);
        let own = key.verifying_key().to_encoded_point(false);
        let good = token(&key, r#"{"aud":"https://push.example","exp":1000}"#);
        let check =
            |authorization: &str, now, key| check(Some(authorization), "https://push.example", now, key);

        assert_eq!(check(&good, 500, None), Ok(()));
        assert_eq!(check(&good, 500, Some(own.as_bytes())), Ok(()));
        assert_eq!(check(&good, 500, Some(b"other")), Err(Rejected::Key));
        assert_eq!(check(&good, 1000, None), Err(Rejected::Expiry));
        assert_eq!(check(&good, 1000 - 24 * 3600 - 1, None), Err(Rejected::Expiry));
        assert_eq!(
            check(&good.replace("vapid", "Bearer"), 500, None),
            Err(Rejected::Missing)
        );
        assert_eq!(
            check(&token(&key, r#"{"aud":"https://other","exp":1000}"#), 500, None),
            Err(Rejected::Audience)
        );
        let (_, stolen) = good.split_once("t=").unwrap();
        let (stolen, _) = stolen.split_once(',').unwrap();
        let other = token(&SigningKey::random(&mut OsRng), "{}");
        let (_, k) = other.split_once(" k=").unwrap();
        assert_eq!(
            check(&format!("vapid t={stolen}, k={k}"), 500, None),
            Err(Rejected::Signature)
        );
        assert_eq!(
            super::check(None, "https://push.example", 500, None),
            Err(Rejected::Missing)
        );
    }
}
