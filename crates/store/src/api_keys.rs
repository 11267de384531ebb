//! API keys.

use async_trait::async_trait;
use herald_model::{ApiKey, ApiKeyId, time::Timestamp};

use crate::{Error, ErrorKind, Result};

/// Maximum number of API keys.
pub const API_KEYS_MAX: usize = 1_000;

/// The API keys, without their secrets.
#[async_trait]
pub trait ApiKeys: Send + Sync {
    /// Adds a key. Durable on return. When there are [`API_KEYS_MAX`] keys, it takes the place of the one that ended first.
    ///
    /// [`LimitExceeded`](crate::ErrorKind::LimitExceeded) if all of them are valid; [`Invalid`](crate::ErrorKind::Invalid)
    /// if another key has the id.
    async fn insert(&self, key: &ApiKey, now: Timestamp) -> Result<()>;

    /// Revokes a key. Durable on return. A revoked key keeps its time. Returns the key; `None` if there is none.
    async fn revoke(&self, id: ApiKeyId, at: Timestamp) -> Result<Option<ApiKey>>;

    /// Reads all keys, the oldest first.
    async fn all(&self) -> Result<Vec<ApiKey>>;
}

/// What an insert does to the keys.
pub(crate) enum Insertion {
    /// The key is there already.
    Nothing,
    /// The key is added.
    Add,
    /// The key is added, and this one is removed.
    Replace(ApiKeyId),
}

/// Decides what an insert does.
pub(crate) fn prepare_insertion(keys: &[ApiKey], new: &ApiKey, now: Timestamp) -> Result<Insertion> {
    if let Some(same) = keys.iter().find(|key| key.id == new.id) {
        // A key that was revoked since it was inserted stays so.
        let as_inserted = ApiKey {
            revoked_at: new.revoked_at,
            ..same.clone()
        };
        return if as_inserted == *new {
            Ok(Insertion::Nothing)
        } else {
            Err(Error::new(
                ErrorKind::Invalid,
                format!("there is another API key {}", new.id),
            ))
        };
    }
    if keys.len() < API_KEYS_MAX {
        return Ok(Insertion::Add);
    }
    let ended = keys.iter().filter(|key| !key.is_valid_at(now));
    match ended.min_by_key(|key| [key.revoked_at, key.expires_at].into_iter().flatten().min()) {
        Some(first) => Ok(Insertion::Replace(first.id)),
        None => Err(Error::new(
            ErrorKind::LimitExceeded,
            format!("there are {API_KEYS_MAX} valid API keys: revoke one"),
        )),
    }
}

/// Sorts keys as [`ApiKeys::all`] returns them.
pub(crate) fn sort(keys: &mut [ApiKey]) {
    keys.sort_by_key(|key| (key.created_at, key.id));
}
