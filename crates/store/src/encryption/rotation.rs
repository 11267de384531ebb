//! The keys that stored devices are encrypted with, and their rotation.

use async_trait::async_trait;
use herald_model::UserKey;

use super::StorageKeyId;
use crate::{Error, ErrorKind, Result};

/// Users that are read at a time.
const USERS_PER_READ: usize = 500;

/// Users that can't be read, of which a rotation reports the keys.
const UNREADABLE_SHOWN: usize = 10;

/// The storage keys of a store: which ones its devices are encrypted with, and their rotation.
#[async_trait]
pub trait StorageKeys: Send + Sync {
    /// Removes the devices whose keys are lost ([`Encryption::lost_keys`](super::Encryption::lost_keys)), and forgets
    /// these keys: no process can write with them any more. Returns the number of devices. Durable on return; can be
    /// interrupted and called again. Call it at the start of a process, before [`check`](Self::check).
    ///
    /// [`Invalid`](ErrorKind::Invalid) if this process has no key to encrypt devices with from now on.
    async fn remove_lost(&self) -> Result<u64>;

    /// Checks that this process can read all devices, and may write them. Call it at the start of a process that uses
    /// devices.
    ///
    /// [`Invalid`](ErrorKind::Invalid) if it lacks a key, or if its key was retired by a rotation; the message names the
    /// key and says what to do.
    async fn check(&self) -> Result<()>;

    /// Lists the keys that stored devices can be encrypted with; empty if no device was ever encrypted.
    async fn in_use(&self) -> Result<Vec<StorageKeyId>>;

    /// Begins a rotation to the key of this process: no other process can write devices any more with another key, or
    /// without one. Returns the key and the approximate number of users with devices. Durable on return.
    ///
    /// [`Invalid`](ErrorKind::Invalid) if this process has no key, or lacks one that devices are encrypted with.
    async fn begin_rotation(&self) -> Result<(StorageKeyId, u64)>;

    /// Encrypts the devices of the next `limit` users after `after` with the key of this process, unless they are already.
    /// Durable on return. Devices can change meanwhile; no change is lost.
    async fn reseal(&self, after: Option<UserKey>, limit: usize) -> Result<Resealed>;

    /// Forgets the other keys, after the devices of all users were encrypted. Durable on return. Returns the forgotten
    /// keys.
    async fn end_rotation(&self) -> Result<Vec<StorageKeyId>>;
}

/// What [`StorageKeys::reseal`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resealed {
    /// The last user that was read; `None` after the last one.
    pub last: Option<UserKey>,
    /// Number of users that were read.
    pub users: u64,
    /// Number of users whose devices were encrypted.
    pub resealed: u64,
    /// Users whose devices can't be decrypted or decoded. They are left as they are.
    pub unreadable: Vec<UserKey>,
}

/// How far a rotation is.
#[derive(Debug, Clone, Copy)]
pub struct RotationProgress {
    /// Number of users so far.
    pub users: u64,
    /// Approximate number of users with devices.
    pub users_estimated: u64,
}

/// What a rotation did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotated {
    /// The key that all devices are encrypted with now.
    pub key: StorageKeyId,
    /// Number of users with devices.
    pub users: u64,
    /// Number of users whose devices were encrypted; those of the others were already.
    pub resealed: u64,
    /// The keys that are not needed any more.
    pub forgotten: Vec<StorageKeyId>,
}

/// Encrypts all devices with the key of this process, and forgets the other keys. Can be interrupted and run again: what is
/// encrypted already is skipped.
///
/// [`Corrupt`](ErrorKind::Corrupt) if devices can't be decrypted: all others are encrypted, and no key is forgotten.
pub async fn rotate(
    keys: &dyn StorageKeys,
    progress: &(dyn Fn(RotationProgress) + Send + Sync),
) -> Result<Rotated> {
    let (key, users_estimated) = keys.begin_rotation().await?;
    let (mut users, mut resealed, mut unreadable, mut after) = (0, 0, Vec::new(), None);
    loop {
        let page = keys.reseal(after, USERS_PER_READ).await?;
        users += page.users;
        resealed += page.resealed;
        unreadable.extend(page.unreadable);
        progress(RotationProgress {
            users,
            users_estimated: users_estimated.max(users),
        });
        match page.last {
            Some(last) => after = Some(last),
            None => break,
        }
    }
    if unreadable.is_empty() {
        return Ok(Rotated {
            key,
            users,
            resealed,
            forgotten: keys.end_rotation().await?,
        });
    }
    let shown: Vec<String> = unreadable
        .iter()
        .take(UNREADABLE_SHOWN)
        .map(ToString::to_string)
        .collect();
    let more = unreadable.len().saturating_sub(UNREADABLE_SHOWN);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    Err(Error::new(
        ErrorKind::Corrupt,
        format!(
            "the devices of the users with the keys {}{more} can't be decrypted; all others are encrypted with the storage key \
             {key}, and the previous keys are still needed: restore these users' devices from a backup, then run the \
             rotation again",
            shown.join(", "),
        ),
    ))
}

/// The error of a process that lacks keys that devices are encrypted with.
pub(crate) fn missing(keys: &[StorageKeyId]) -> Error {
    let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
    Error::new(
        ErrorKind::Invalid,
        format!(
            "devices in the store are encrypted with the storage key {}, which this process lacks: set store.encryption.key to \
             it (HERALD_STORE__ENCRYPTION__KEY_FILE names a file with it), or add it to store.encryption.previous_keys if \
             another key is used now; `herald up` has its key in the file storage.key of its data directory, which no backup \
             has: put it back; if the key is lost for good, set store.encryption.lost_keys to {} for one start: this removes the \
             devices that are encrypted with it, and their users have to register them again",
            keys.join(" and "),
            keys.join(","),
        ),
    )
}

/// Warns that the devices of lost keys were removed.
pub(crate) fn log_lost(keys: &[StorageKeyId], devices: u64) {
    let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
    tracing::warn!(
        key_ids = keys.join(","),
        devices,
        "devices removed: their storage key is lost (store.encryption.lost_keys); their users have to register them again"
    );
}

/// The error of a rotation without a key.
pub(crate) fn no_key() -> Error {
    Error::new(
        ErrorKind::Invalid,
        "no storage key is configured: set store.encryption.key (HERALD_STORE__ENCRYPTION__KEY_FILE names a file with it)",
    )
}
