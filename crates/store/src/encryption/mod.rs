//! Encryption at rest of what devices hold: endpoints, Web Push keys and webhook secrets.
//!
//! Each device is encrypted alone, by XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03, on RFC 8439) with a random nonce of
//! 192 bits, which needs no limit on the number of records: 2^80 of them have a pair with the same nonce with a
//! probability of 2^-33. What is encrypted is bound to its user and its device, so that a record that was put in the
//! place of another one is refused. An older record of the same device is not: who can write to the store can put it back.
//!
//! | bytes of a record | |
//! |---|---|
//! | 1 | version, 1 |
//! | 8 | id of the key: the first bytes of its SHA-256 |
//! | 24 | nonce |
//! | the rest | ciphertext and tag of 16 bytes |
//!
//! Not encrypted are the ids, times and states of devices, and whether a device gets Web Push.

mod key_id;
mod keyring;
mod rotation;

use herald_secret::Secret;
use serde::{Deserialize, Serialize};

pub use key_id::StorageKeyId;
use keyring::parse_key;
pub(crate) use keyring::{Keyring, key_of};
pub use rotation::{Resealed, Rotated, RotationProgress, StorageKeys, rotate};
pub(crate) use rotation::{log_lost, missing, no_key};

/// Maximum number of previous keys, and of lost ones.
const PREVIOUS_KEYS_MAX: usize = 16;

/// Encryption at rest of what devices hold: endpoints, Web Push keys and webhook secrets. A change of the keys applies
/// after a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Encryption {
    /// Storage key that devices are encrypted with when they are written: 32 random bytes in base64, such as from
    /// `openssl rand -base64 32`. All processes that share a store must have the same one. Empty: devices are written as
    /// they are.
    pub key: Secret,
    /// Storage keys of devices that were written before, to decrypt them with: separated by commas or line breaks; at
    /// most 16. `herald key rotate-storage` encrypts all devices with `key`, and then none is needed.
    pub previous_keys: Secret,
    /// Ids of storage keys that are lost for good, separated by commas or line breaks; at most 16. The start removes
    /// the devices that are encrypted with one of them: their users have to register them again. Refused for a key
    /// that is configured.
    pub lost_keys: String,
}

impl Encryption {
    /// Checks the keys.
    ///
    /// # Errors
    /// Begins with the name of the first setting that is malformed. Has no part of a key.
    pub fn validate(&self) -> Result<(), String> {
        Keyring::new(self).map(drop)
    }

    /// The id of the key that devices are encrypted with; `None` without a key, or if it is malformed.
    pub fn key_id(&self) -> Option<StorageKeyId> {
        Keyring::new(self).ok()?.current()
    }

    /// The ids of all keys; none if one is malformed.
    pub fn key_ids(&self) -> Vec<StorageKeyId> {
        Keyring::new(self).map(|keys| keys.ids()).unwrap_or_default()
    }

    /// The ids of the keys that are lost; none if one is malformed.
    pub fn lost_key_ids(&self) -> Vec<StorageKeyId> {
        Keyring::new(self).map(|keys| keys.lost()).unwrap_or_default()
    }

    /// Adds a key of before, unless it is there.
    ///
    /// # Errors
    /// The key is malformed.
    pub fn add_previous(&mut self, key: &Secret) -> Result<(), String> {
        let (id, _) = parse_key("the storage key", key.expose())?;
        if !self.key_ids().contains(&id) {
            let keys = format!("{}\n{}", self.previous_keys.expose(), key.expose());
            self.previous_keys = Secret::new(keys.trim());
        }
        Ok(())
    }

    /// A new random key, as the setting `key` has it.
    ///
    /// # Errors
    /// The operating system has no random bytes.
    pub fn generate_key() -> std::io::Result<Secret> {
        keyring::generate().map(Secret::new)
    }
}
