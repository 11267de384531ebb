//! Generates values, and derives public keys from seeds.

use herald_store::encryption::Encryption;
use nkeys::{KeyPair, KeyPairType};
use rand::distr::{Alphanumeric, SampleString as _};

use super::spec::Kind;

/// Length of a password: 190 bits.
const PASSWORD_CHARS: usize = 32;

/// Generates a value; `None` for a kind whose value follows from another one.
pub(super) fn generate(kind: Kind) -> Option<Result<String, String>> {
    Some(match kind {
        // Letters and digits, so that it needs no escapes in a URL.
        Kind::Password => Ok(Alphanumeric.sample_string(&mut rand::rng(), PASSWORD_CHARS)),
        Kind::Vapid => Ok(herald_push::Vapid::generate()),
        Kind::StorageKey => Encryption::generate_key()
            .map(|key| key.expose().to_owned())
            .map_err(|error| format!("a storage key can't be made: {error}")),
        Kind::Nkey => KeyPair::new_user()
            .seed()
            .map_err(|error| format!("an NKey can't be made: {error}")),
        Kind::NkeyPublic => return None,
    })
}

/// The public key of a seed of a user.
pub(super) fn public_key(seed: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(seed).map_err(|_| "is not the seed of an NKey: it is not text")?;
    let pair =
        KeyPair::from_seed(text.trim()).map_err(|error| format!("is not the seed of an NKey: {error}"))?;
    match pair.key_pair_type() {
        KeyPairType::User => Ok(pair.public_key()),
        other => Err(format!("is the seed of an NKey of type {other:?}, not of a user")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_as_their_users_expect_them() {
        let value = |kind| generate(kind).unwrap().unwrap();
        let password = value(Kind::Password);
        assert_eq!(password.len(), 32);
        assert!(password.chars().all(|c| c.is_ascii_alphanumeric()), "{password}");
        assert_ne!(value(Kind::Password), password);
        let seed = value(Kind::Nkey);
        assert!(seed.starts_with("SU") && public_key(seed.as_bytes()).unwrap().starts_with('U'));
        assert_eq!(value(Kind::Vapid).len(), 43);
        let encryption = Encryption {
            key: herald_runtime::config::Secret::new(value(Kind::StorageKey)),
            ..Encryption::default()
        };
        assert_eq!(encryption.validate(), Ok(()));
        assert!(generate(Kind::NkeyPublic).is_none());
    }

    #[test]
    fn another_kind_of_seed_is_refused() {
        let account = KeyPair::new_account().seed().unwrap();
        assert!(public_key(account.as_bytes()).unwrap_err().contains("Account"));
        assert!(public_key(b"hunter2").unwrap_err().contains("not the seed"));
        assert!(public_key(&[0xff]).unwrap_err().contains("not text"));
    }
}
