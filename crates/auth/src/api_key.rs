//! The format of API keys: `hk_ID_SECRET`, where ID is 16 hexadecimal digits and SECRET is 32 random bytes in base64url
//! without padding, 43 characters. The prefix lets programs that look for leaked secrets find one.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use herald_model::ApiKeyId;
use herald_secret::Secret;
use rand::RngCore as _;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

const PREFIX: &str = "hk_";
const ID_CHARS: usize = 16;
const SECRET_CHARS: usize = 43;
const SECRET_BYTES: usize = 32;

/// SHA-256 of a secret.
pub(crate) type Hash = [u8; 32];

/// A key that was just made.
#[derive(Debug)]
pub struct NewApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// The hash of its secret, for the store.
    pub secret_hash: [u8; 32],
    /// The key, for its user.
    pub token: Secret,
}

impl NewApiKey {
    /// Makes a key of random bytes.
    pub fn generate() -> Self {
        let mut rng = rand::rng();
        let id = ApiKeyId(rng.next_u64());
        let mut secret = [0; SECRET_BYTES];
        rng.fill_bytes(&mut secret);
        Self {
            id,
            secret_hash: hash(&secret),
            token: Secret::new(format!("{PREFIX}{id}_{}", BASE64.encode(secret))),
        }
    }
}

/// A key as a caller sent it.
pub(crate) struct ApiKeyToken {
    pub(crate) id: ApiKeyId,
    secret_hash: Hash,
}

impl ApiKeyToken {
    /// Parses a key; `None` if the text isn't one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_at_checked(ID_CHARS)?;
        let secret = secret
            .strip_prefix('_')
            .filter(|secret| secret.len() == SECRET_CHARS)?;
        Some(Self {
            id: id.parse().ok()?,
            // Refuses bits beyond the last byte: a secret has one text.
            secret_hash: hash(&BASE64.decode(secret).ok()?),
        })
    }

    /// Whether the secret has this hash.
    pub(crate) fn has_secret(&self, secret_hash: &Hash) -> bool {
        is_equal(&self.secret_hash, secret_hash)
    }
}

impl fmt::Debug for ApiKeyToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeyToken")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// SHA-256.
pub(crate) fn hash(bytes: &[u8]) -> Hash {
    Sha256::digest(bytes).into()
}

/// Compares hashes in constant time: how long it takes says nothing about where they differ.
pub(crate) fn is_equal(a: &Hash, b: &Hash) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_new_key_is_recognised_and_no_other_secret_is() {
        let (key, other) = (NewApiKey::generate(), NewApiKey::generate());
        let token = ApiKeyToken::parse(key.token.expose()).unwrap();
        assert_eq!(token.id, key.id);
        assert!(token.has_secret(&key.secret_hash));
        assert!(!token.has_secret(&other.secret_hash));
        assert_eq!(key.token.expose().len(), 3 + 16 + 1 + 43);
        let printed = format!("{key:?} {token:?}");
        assert!(!printed.contains(&key.token.expose()[20..]), "{printed}");
    }

    #[test]
    fn a_key_has_one_text() {
        let secret = "A".repeat(42);
        let id = "0123456789abcdef";
        assert!(ApiKeyToken::parse(&format!("hk_{id}_{secret}A")).is_some());
        for text in [
            // Bits beyond the last byte.
            format!("hk_{id}_{secret}B"),
            format!("hk_{id}_{secret}"),
            format!("hk_{id}_{secret}A="),
            format!("hk_{}_{secret}A", id.to_uppercase()),
            format!("HK_{id}_{secret}A"),
            format!("hk_{id}-{secret}A"),
            format!(" hk_{id}_{secret}A"),
            String::new(),
        ] {
            assert!(ApiKeyToken::parse(&text).is_none(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_key_or_none(text in "\\PC{0,80}") {
            prop_assert!(ApiKeyToken::parse(&text).is_none());
        }

        #[test]
        fn any_text_like_a_key_is_parsed_or_refused(text in "hk_[0-9a-g]{15,17}_[A-Za-z0-9_-]{42,44}") {
            if let Some(token) = ApiKeyToken::parse(&text) {
                prop_assert_eq!(token.id.to_string(), &text[3..19]);
            }
        }

        #[test]
        fn a_changed_character_makes_another_key(at in 20_usize..62, to in "[A-Za-z0-9_-]") {
            let key = NewApiKey::generate();
            let mut text = key.token.expose().to_owned();
            prop_assume!(text[at..=at] != to);
            text.replace_range(at..=at, &to);
            prop_assert!(!ApiKeyToken::parse(&text).is_some_and(|token| token.has_secret(&key.secret_hash)));
        }
    }
}
