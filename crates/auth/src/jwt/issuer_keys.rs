//! The keys of an issuer (JWKS, RFC 7517).

use std::sync::Arc;

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse},
};
use tokio_util::sync::CancellationToken;

/// The keys of an issuer that can verify signatures.
pub(super) struct IssuerKeys {
    keys: Vec<IssuerKey>,
    source: JwkSet,
}

/// A key of an issuer.
pub(super) struct IssuerKey {
    id: Option<String>,
    /// The one algorithm of the key, if the issuer says so.
    algorithm: Option<Algorithm>,
    family: AlgorithmFamily,
    pub(super) key: DecodingKey,
    source: Jwk,
    /// Cancelled when the issuer no longer has the key.
    pub(super) withdrawn: Arc<CancellationToken>,
}

impl IssuerKeys {
    /// Parses a set of keys. Keys that Herald doesn't know or use are left out, those of a shared secret among them: a secret
    /// that is public makes no valid tokens.
    pub(super) fn parse(text: &[u8]) -> Result<Self, &'static str> {
        let source: JwkSet = serde_json::from_slice(text).map_err(|_| "they are not a JSON Web Key Set")?;
        let keys: Vec<_> = source.keys.iter().filter_map(IssuerKey::of).collect();
        if keys.is_empty() {
            return Err("the set has no key for signatures");
        }
        Ok(Self { keys, source })
    }

    /// The key of a token: that with the id in its header, or the only one for its algorithm if the header has no id.
    pub(super) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<&IssuerKey> {
        let mut fitting = self.keys.iter().filter(|key| {
            key.family == algorithm.family()
                && key.algorithm.is_none_or(|only| only == algorithm)
                && (id.is_none() || key.id.as_deref() == id)
        });
        let found = fitting.next()?;
        (id.is_some() || fitting.next().is_none()).then_some(found)
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.source == other.source
    }

    /// Takes the place of an earlier set: the lifetimes of tokens go on if their key is in both sets, and end if it is
    /// not.
    pub(super) fn succeed(&mut self, earlier: &Self) {
        for key in &earlier.keys {
            match self.keys.iter_mut().find(|kept| kept.source == key.source) {
                Some(kept) => kept.withdrawn = key.withdrawn.clone(),
                None => key.withdrawn.cancel(),
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }
}

impl IssuerKey {
    fn of(jwk: &Jwk) -> Option<Self> {
        let family = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => AlgorithmFamily::Rsa,
            AlgorithmParameters::EllipticCurve(key) if is_known(&key.curve) => AlgorithmFamily::Ec,
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                AlgorithmFamily::Ed
            }
            _ => return None,
        };
        if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
            return None;
        }
        let algorithm = match jwk.common.key_algorithm {
            // A key for an algorithm that isn't known is no key.
            Some(algorithm) => Some(Algorithm::try_from(algorithm).ok()?),
            None => None,
        };
        Some(Self {
            id: jwk.common.key_id.clone(),
            algorithm,
            family,
            key: DecodingKey::from_jwk(jwk).ok()?,
            source: jwk.clone(),
            withdrawn: Arc::default(),
        })
    }
}

fn is_known(curve: &EllipticCurve) -> bool {
    matches!(curve, EllipticCurve::P256 | EllipticCurve::P384)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn parse(keys: &Value) -> Result<IssuerKeys, &'static str> {
        IssuerKeys::parse(json!({ "keys": keys }).to_string().as_bytes())
    }

    fn ed(id: &str) -> Value {
        json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "kid": id})
    }

    #[test]
    fn keys_for_other_uses_and_shared_secrets_are_left_out() {
        let secret = json!({"kty": "oct", "k": "c2VjcmV0", "kid": "a", "alg": "HS256"});
        let unknown = json!({"kty": "NEW", "kid": "b"});
        let mut encryption = ed("c");
        encryption["use"] = "enc".into();
        let mut other_algorithm = ed("d");
        other_algorithm["alg"] = "XX1".into();
        let keys = parse(&json!([secret, unknown, encryption, other_algorithm, ed("e")])).unwrap();
        assert_eq!(keys.len(), 1);
        assert!(keys.find(Some("e"), Algorithm::EdDSA).is_some());
        assert!(parse(&json!([secret])).is_err());
        for text in ["", "[]", "{}", "null", "<html>"] {
            assert!(IssuerKeys::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_token_without_a_key_id_needs_a_single_key() {
        let one = parse(&json!([ed("a")])).unwrap();
        assert!(one.find(None, Algorithm::EdDSA).is_some());
        assert!(one.find(Some("b"), Algorithm::EdDSA).is_none());
        assert!(one.find(Some("a"), Algorithm::ES256).is_none());
        let two = parse(&json!([ed("a"), ed("b")])).unwrap();
        assert!(two.find(None, Algorithm::EdDSA).is_none());
        assert!(two.find(Some("b"), Algorithm::EdDSA).is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_are_keys_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(IssuerKeys::parse(&bytes).is_err());
        }

        #[test]
        fn any_key_is_taken_or_left_out(kty in "RSA|EC|OKP|oct|x", crv in "P-256|P-384|P-521|Ed25519|x", text in "[A-Za-z0-9_=+-]{0,90}") {
            let key = json!({"kty": kty, "crv": crv, "x": text, "y": text, "n": text, "e": text, "k": text});
            let _ = parse(&json!([key]));
        }
    }
}
