//! Ids of storage keys.

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256};

/// Bytes of an id.
pub(super) const BYTES: usize = 8;

/// Id of a storage key: the first 8 bytes of its SHA-256, shown as 16 hexadecimal digits. It tells nothing of the key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorageKeyId(pub(super) [u8; BYTES]);

impl StorageKeyId {
    /// The id of a key.
    pub(super) fn of(key: &[u8; 32]) -> Self {
        let hash: [u8; 32] = Sha256::digest(key).into();
        let mut id = [0; BYTES];
        id.copy_from_slice(&hash[..BYTES]);
        Self(id)
    }
}

impl fmt::Display for StorageKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for StorageKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for StorageKeyId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let id = u64::from_str_radix(text, 16)
            .ok()
            .filter(|_| text.len() == 2 * BYTES);
        let id = id.ok_or_else(|| format!("{text:?} is no id of a storage key"))?;
        Ok(Self(id.to_be_bytes()))
    }
}
