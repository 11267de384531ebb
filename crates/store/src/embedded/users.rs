//! The dictionary of users: `user_keys` (id → key) and `user_ids` (key → id), both behind caches.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use fjall::Keyspace;
use futures::executor::block_on;
use herald_model::{UserId, UserKey};

use super::{
    cache::ENTRY_BYTES,
    database::{self, Database, map_err},
    group_commit::{GroupCommit, Readable},
};
use crate::{Error, ErrorKind, Result};

/// Number of users at which a batch takes no more calls.
const BATCH_USERS_MAX: usize = 2_000;

/// The embedded engine's [`Users`](crate::Users).
pub(crate) struct EmbeddedUsers {
    tables: Arc<Tables>,
    writes: GroupCommit<Vec<UserId>, Vec<UserKey>>,
    keys: moka::sync::Cache<UserId, UserKey>,
    ids: moka::sync::Cache<UserKey, UserId>,
}

/// The rows of users. They never change, so caches need no invalidation.
struct Tables {
    database: Arc<Database>,
    keys: Keyspace,
    ids: Keyspace,
}

impl EmbeddedUsers {
    /// Opens the dictionary. `cache_bytes_max` bounds the cache of each direction.
    pub(crate) fn open(database: &Arc<Database>, cache_bytes_max: u64) -> Result<Self> {
        let tables = Arc::new(Tables {
            keys: database.keyspace("user_keys", database::options)?,
            ids: database.keyspace("user_ids", database::options)?,
            database: Arc::clone(database),
        });
        let mut last = tables.last()?;
        let shared = Arc::clone(&tables);
        let writes =
            GroupCommit::start_marking("users", BATCH_USERS_MAX, Vec::len, move |calls, readable| {
                shared.intern(&mut last, calls, readable)
            })?;
        let weigh = |id: &UserId| u32::try_from(id.as_str().len() + ENTRY_BYTES).unwrap_or(u32::MAX);
        Ok(Self {
            tables,
            writes,
            keys: moka::sync::Cache::builder()
                .name("user-keys")
                .max_capacity(cache_bytes_max)
                .weigher(move |id, _| weigh(id))
                .build(),
            ids: moka::sync::Cache::builder()
                .name("user-ids")
                .max_capacity(cache_bytes_max)
                .weigher(move |_, id| weigh(id))
                .build(),
        })
    }
}

impl Tables {
    fn last(&self) -> Result<u32> {
        let Some(row) = self.ids.last_key_value() else {
            return Ok(0);
        };
        decode(&row.key().map_err(map_err)?).map(|key| key.0)
    }

    fn key(&self, id: &UserId) -> Result<Option<UserKey>> {
        self.keys
            .get(id.as_str())
            .map_err(map_err)?
            .map(|key| decode(&key))
            .transpose()
    }

    fn id(&self, key: UserKey) -> Result<Option<UserId>> {
        let Some(id) = self.ids.get(key.0.to_be_bytes()).map_err(map_err)? else {
            return Ok(None);
        };
        std::str::from_utf8(&id)
            .ok()
            .and_then(|id| UserId::from_stored(id).ok())
            .map(Some)
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("can't decode the id of user {key}")))
    }

    /// Finds or creates the keys of a batch of calls. `last` is the greatest key in use.
    fn intern(
        &self,
        last: &mut u32,
        calls: Vec<Vec<UserId>>,
        readable: &Readable,
    ) -> Result<Vec<Result<Vec<UserKey>>>> {
        let mut batch = self.database.batch();
        let mut created: HashMap<UserId, UserKey> = HashMap::new();
        let mut next = *last;
        let mut answers = Vec::with_capacity(calls.len());
        for ids in calls {
            let mut keys = Vec::with_capacity(ids.len());
            for id in ids {
                let existing = match created.get(&id) {
                    Some(key) => Some(*key),
                    None => self.key(&id)?,
                };
                if let Some(key) = existing {
                    keys.push(key);
                    continue;
                }
                next = next
                    .checked_add(1)
                    .ok_or_else(|| Error::new(ErrorKind::Full, "all 2^32 - 1 user keys are in use"))?;
                // The id first: a reader that sees the key also sees its id.
                batch.insert(&self.ids, next.to_be_bytes(), id.as_str());
                batch.insert(&self.keys, id.as_str(), next.to_be_bytes());
                created.insert(id, UserKey(next));
                keys.push(UserKey(next));
            }
            answers.push(Ok(keys));
        }
        if !batch.is_empty() {
            // Raised even if the commit fails: a key that may be on disk must not be reused.
            *last = next;
            readable.mark();
            block_on(self.database.commit(batch))?;
        }
        Ok(answers)
    }
}

fn decode(key: &[u8]) -> Result<UserKey> {
    let key = key
        .try_into()
        .map_err(|_| Error::new(ErrorKind::Corrupt, "can't decode a user key of the dictionary"))?;
    Ok(UserKey(u32::from_be_bytes(key)))
}

#[async_trait]
impl crate::Users for EmbeddedUsers {
    async fn find(&self, ids: &[UserId]) -> Result<Vec<Option<UserKey>>> {
        let mut keys = Vec::with_capacity(ids.len());
        let mut loaded = Vec::new();
        for id in ids {
            let mut key = self.keys.get(id);
            if key.is_none() {
                key = self.tables.key(id)?;
                loaded.extend(key.map(|key| (id, key)));
            }
            keys.push(key);
        }
        if !loaded.is_empty() {
            // A key that is not durable could get another id after a loss of power.
            self.writes.wait_durable().await?;
            for (id, key) in loaded {
                self.keys.insert(id.clone(), key);
            }
        }
        Ok(keys)
    }

    async fn intern(&self, ids: &[UserId]) -> Result<Vec<UserKey>> {
        let found = self.find(ids).await?;
        let missing: Vec<_> = ids
            .iter()
            .zip(&found)
            .filter(|(_, key)| key.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        let mut created = Vec::new().into_iter();
        if !missing.is_empty() {
            let keys = self.writes.run(missing.clone()).await?;
            for (id, key) in missing.into_iter().zip(&keys) {
                self.ids.insert(*key, id.clone());
                self.keys.insert(id, *key);
            }
            created = keys.into_iter();
        }
        found
            .into_iter()
            .map(|key| key.or_else(|| created.next()))
            .collect::<Option<_>>()
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, "the dictionary created too few keys"))
    }

    async fn last_key(&self) -> Result<Option<UserKey>> {
        let last = self.tables.last()?;
        Ok((last > 0).then_some(UserKey(last)))
    }

    async fn ids(&self, keys: &[UserKey]) -> Result<Vec<Option<UserId>>> {
        keys.iter()
            .map(|key| {
                if let Some(id) = self.ids.get(key) {
                    return Ok(Some(id));
                }
                let id = self.tables.id(*key)?;
                if let Some(id) = &id {
                    self.ids.insert(*key, id.clone());
                }
                Ok(id)
            })
            .collect()
    }
}
