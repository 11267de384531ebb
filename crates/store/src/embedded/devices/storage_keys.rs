//! The keys that devices are encrypted with: a row in `device_counter` for each, and their rotation.
//!
//! *Invariant:* the row of a key is committed with or before the first device that is encrypted with it, and removed after
//! the last one was encrypted with another key. So a start that finds the keys of all rows can read all devices.

use std::{ops::Bound, sync::atomic::Ordering};

use async_trait::async_trait;
use futures::{executor::block_on, future::join_all};
use herald_model::UserKey;

use super::{Change, EmbeddedDevices, Tables, map_err, user_of};
use crate::{
    Error, ErrorKind, Result,
    encryption::{Resealed, StorageKeyId, StorageKeys, log_lost, missing, no_key},
};

/// The beginning of the names of the rows.
const PREFIX: &str = "storage_key/";

/// Users whose devices are removed in a batch.
const USERS_PER_BATCH: usize = 1_000;

/// The value of a row.
pub(super) const IN_USE: &[u8] = b"in use";

/// The name of the row of a key.
pub(super) fn name_of(key: StorageKeyId) -> String {
    format!("{PREFIX}{key}")
}

impl Tables {
    /// The keys that devices can be encrypted with.
    fn keys_in_use(&self) -> Result<Vec<StorageKeyId>> {
        let rows = self.counter.prefix(PREFIX);
        rows.map(|row| {
            let (name, _) = row.into_inner().map_err(map_err)?;
            let name = std::str::from_utf8(&name).unwrap_or_default();
            let key = name.strip_prefix(PREFIX).unwrap_or_default();
            key.parse()
                .map_err(|reason: String| Error::new(ErrorKind::Corrupt, reason))
        })
        .collect()
    }

    /// Removes the devices whose keys are lost, and forgets these keys. Returns the number of devices. No one else may
    /// change devices meanwhile.
    pub(super) fn remove_lost(&self) -> Result<u64> {
        let lost = self.codec.keys().lost();
        let lost: Vec<_> = self
            .keys_in_use()?
            .into_iter()
            .filter(|key| lost.contains(key))
            .collect();
        if lost.is_empty() {
            return Ok(0);
        }
        if self.codec.keys().current().is_none() {
            return Err(no_key());
        }
        let (mut removed, mut after) = (0, Bound::Unbounded);
        loop {
            let rows = self.devices.range::<[u8; 4], _>((after, Bound::Unbounded));
            let mut batch = self.database.batch();
            let mut last = None;
            for row in rows.take(USERS_PER_BATCH) {
                let (key, row) = row.into_inner().map_err(map_err)?;
                let user = user_of(&key)?;
                last = Some(user);
                if let Some(left) = self.codec.without_lost(&row) {
                    removed += left.removed;
                    if left.row.is_empty() {
                        batch.remove(&self.devices, key);
                    } else {
                        batch.insert(&self.devices, key, left.row);
                    }
                    self.cache.invalidate(&user);
                }
            }
            let Some(last) = last else { break };
            block_on(self.database.commit(batch))?;
            after = Bound::Excluded(last.0.to_be_bytes());
        }
        let mut batch = self.database.batch();
        for key in &lost {
            batch.remove(&self.counter, name_of(*key));
        }
        block_on(self.database.commit(batch))?;
        log_lost(&lost, removed);
        Ok(removed)
    }

    /// Checks that the process has the keys of all devices.
    pub(super) fn check_keys(&self) -> Result<()> {
        let in_use = self.keys_in_use()?;
        let keys = self.codec.keys();
        let is_recorded = keys.current().is_none_or(|key| in_use.contains(&key));
        self.is_key_recorded.store(is_recorded, Ordering::Release);
        let lacking: Vec<_> = in_use.into_iter().filter(|key| !keys.has(*key)).collect();
        if lacking.is_empty() {
            return Ok(());
        }
        Err(missing(&lacking))
    }

    /// The next users after `after`, at most `limit`, each with whether its devices are encrypted with the current key.
    fn next_users(&self, after: Option<UserKey>, limit: usize) -> Result<Vec<(UserKey, bool)>> {
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.0.to_be_bytes()));
        let rows = self.devices.range::<[u8; 4], _>((from, Bound::Unbounded));
        rows.take(limit)
            .map(|row| {
                let (key, row) = row.into_inner().map_err(map_err)?;
                Ok((user_of(&key)?, self.codec.is_sealed(&row)))
            })
            .collect()
    }
}

#[async_trait]
impl StorageKeys for EmbeddedDevices {
    /// Does nothing: [`EmbeddedDevices::open`] has removed them.
    async fn remove_lost(&self) -> Result<u64> {
        Ok(0)
    }

    async fn check(&self) -> Result<()> {
        self.read_all(Tables::check_keys).await
    }

    async fn in_use(&self) -> Result<Vec<StorageKeyId>> {
        self.read_all(Tables::keys_in_use).await
    }

    async fn begin_rotation(&self) -> Result<(StorageKeyId, u64)> {
        let key = self.tables.codec.keys().current().ok_or_else(no_key)?;
        let mut batch = self.tables.database.batch();
        batch.insert(&self.tables.counter, name_of(key), IN_USE);
        self.tables.database.commit(batch).await?;
        Ok((key, self.tables.devices.approximate_len() as u64))
    }

    async fn reseal(&self, after: Option<UserKey>, limit: usize) -> Result<Resealed> {
        let users = self
            .read_all(move |tables| tables.next_users(after, limit))
            .await?;
        let mut page = Resealed {
            last: users.last().map(|(user, _)| *user),
            users: users.len() as u64,
            ..Resealed::default()
        };
        let changes = users.into_iter().filter(|(_, is_sealed)| !is_sealed);
        let changes = changes.map(|(user, _)| async move { (user, self.change(user, Change::Reseal).await) });
        for (user, resealed) in join_all(changes).await {
            match resealed {
                Ok(_) => page.resealed += 1,
                Err(error) if error.kind() == ErrorKind::Corrupt => page.unreadable.push(user),
                Err(error) => return Err(error),
            }
        }
        Ok(page)
    }

    async fn end_rotation(&self) -> Result<Vec<StorageKeyId>> {
        let mut forgotten = self.in_use().await?;
        forgotten.retain(|key| Some(*key) != self.tables.codec.keys().current());
        let mut batch = self.tables.database.batch();
        for key in &forgotten {
            batch.remove(&self.tables.counter, name_of(*key));
        }
        self.tables.database.commit(batch).await?;
        Ok(forgotten)
    }
}
