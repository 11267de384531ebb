//! The dictionary of users. A row changes once, when its user is erased; other processes notice that as
//! [`users_caches`](super::users_caches) says.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use async_trait::async_trait;
use futures::FutureExt;
use herald_model::{UserId, UserKey};
use tokio_util::sync::DropGuard;

use super::{
    Attempt, Postgres, Transaction,
    batch::{BatchLimits, Batcher},
    keys,
    users_caches::{CacheKeeper, LEASE},
};
use crate::{
    Error, ErrorKind, Result,
    users_cache::{KeyUse, UsersCache},
};

/// Batches of the users of concurrent calls. One at a time: all wait for the lock of the counter.
const BATCHES: BatchLimits = BatchLimits {
    jobs_max: 1_024,
    weight_max: 20_000,
    in_flight_max: 1,
};

/// The cluster engine's [`Users`](crate::Users).
pub(crate) struct PostgresUsers {
    postgres: Postgres,
    writes: Batcher<Vec<String>, HashMap<String, UserKey>>,
    cache: Arc<UsersCache>,
    /// Ends the task that keeps the cache up to date.
    _keeper: Option<DropGuard>,
}

impl PostgresUsers {
    /// Starts the tasks that write batches and keep the cache up to date; must be called inside of the runtime of the
    /// engine. `cache_bytes_max` bounds the cache of each direction; 0: there is no cache, and nothing is written before
    /// the first call.
    pub(crate) fn new(postgres: &Postgres, cache_bytes_max: u64) -> Self {
        let cache = Arc::new(UsersCache::leased(cache_bytes_max));
        let keeper = (cache_bytes_max > 0).then(|| {
            let keeper = CacheKeeper::new(postgres, &cache, LEASE);
            postgres.spawn(|stop| keeper.run(stop))
        });
        Self {
            _keeper: keeper,
            ..Self::with_cache(postgres, cache)
        }
    }

    /// With a cache that others keep up to date.
    pub(super) fn with_cache(postgres: &Postgres, cache: Arc<UsersCache>) -> Self {
        let shared = postgres.clone();
        let writes = Batcher::start(BATCHES, Vec::len, move |calls| {
            let postgres = shared.clone();
            async move { create_calls(&postgres, &calls).await }.boxed()
        });
        Self {
            postgres: postgres.clone(),
            writes,
            cache,
            _keeper: None,
        }
    }

    /// Forgets an id in this process, after it was forgotten in the database.
    pub(super) fn forget(&self, id: &UserId, key: UserKey) {
        self.cache.forget(id, key);
    }

    /// The keys of those `ids` that have one.
    async fn read_keys(&self, ids: &[&str]) -> Result<HashMap<String, UserKey>> {
        self.postgres
            .call("read the keys of users", || async {
                let mut connection = self.postgres.pool().acquire().await?;
                existing_keys(&mut connection, ids).await
            })
            .await
    }
}

/// The keys of the ids of concurrent calls; makes the missing ones, in their order.
async fn create_calls(
    postgres: &Postgres,
    calls: &[Arc<Vec<String>>],
) -> Result<Vec<Result<HashMap<String, UserKey>>>> {
    let mut seen = HashSet::new();
    let ids: Vec<&str> = calls
        .iter()
        .flat_map(|call| call.iter().map(String::as_str))
        .filter(|id| seen.insert(*id))
        .collect();
    let keys = create(postgres, &ids).await?;
    Ok(calls
        .iter()
        .map(|call| {
            Ok(call
                .iter()
                .filter_map(|id| Some((id.clone(), *keys.get(id)?)))
                .collect())
        })
        .collect())
}

/// The keys of `ids`, which are distinct; makes the missing ones, in their order.
async fn create(postgres: &Postgres, ids: &[&str]) -> Result<HashMap<String, UserKey>> {
    postgres
        .call("make the keys of users", || async {
            let mut transaction = postgres.begin().await?;
            let last: i64 =
                sqlx::query_scalar("SELECT last FROM herald.counters WHERE name = 'users' FOR UPDATE")
                    .fetch_one(&mut *transaction)
                    .await?;
            // Only now, after the lock, every key that another process made is visible.
            let mut found = existing_keys(&mut transaction, ids).await?;
            let missing: Vec<&str> = ids
                .iter()
                .copied()
                .filter(|id| !found.contains_key(*id))
                .collect();
            if !missing.is_empty() {
                let created = insert(&mut transaction, last, &missing).await?;
                transaction.commit().await?;
                found.extend(missing.iter().map(|id| (*id).to_owned()).zip(created));
            }
            Ok(found)
        })
        .await
}

async fn existing_keys(
    connection: &mut sqlx::PgConnection,
    ids: &[&str],
) -> Attempt<HashMap<String, UserKey>> {
    let rows: Vec<(String, i64)> = sqlx::query_as("SELECT id, key FROM herald.users WHERE id = ANY($1)")
        .bind(ids)
        .fetch_all(connection)
        .await?;
    let mut found = HashMap::with_capacity(rows.len());
    for (id, key) in rows {
        found.insert(id, keys::user(key)?);
    }
    Ok(found)
}

/// Stores users with the keys after `last`.
async fn insert(transaction: &mut Transaction, last: i64, ids: &[&str]) -> Attempt<Vec<UserKey>> {
    let new_last = last + i64::try_from(ids.len()).unwrap_or(i64::MAX - last);
    if new_last > i64::from(u32::MAX) {
        return Err(Error::new(ErrorKind::Full, "all 2^32 - 1 user keys are in use").into());
    }
    let created: Vec<i64> = (last + 1..=new_last).collect();
    sqlx::query("INSERT INTO herald.users (key, id) SELECT * FROM unnest($1::bigint[], $2::text[])")
        .bind(&created)
        .bind(ids)
        .execute(&mut **transaction)
        .await?;
    sqlx::query("UPDATE herald.counters SET last = $1 WHERE name = 'users'")
        .bind(new_last)
        .execute(&mut **transaction)
        .await?;
    Ok(created.into_iter().map(keys::user).collect::<Result<_>>()?)
}

#[async_trait]
impl crate::Users for PostgresUsers {
    async fn find(&self, ids: &[UserId]) -> Result<Vec<Option<UserKey>>> {
        let reading = self.cache.begin();
        let mut keys: Vec<_> = ids.iter().map(|id| self.cache.key(id)).collect();
        let missing: Vec<&str> = ids
            .iter()
            .zip(&keys)
            .filter(|(_, key)| key.is_none())
            .map(|(id, _)| id.as_str())
            .collect();
        if missing.is_empty() {
            return Ok(keys);
        }
        let found = self.read_keys(&missing).await?;
        for (id, key) in ids.iter().zip(&mut keys) {
            if key.is_none()
                && let Some(found) = found.get(id.as_str())
            {
                self.cache.add_key(reading, id, *found);
                *key = Some(*found);
            }
        }
        Ok(keys)
    }

    async fn intern(&self, ids: &[UserId]) -> Result<Vec<UserKey>> {
        let reading = self.cache.begin();
        let found = self.find(ids).await?;
        let missing: Vec<String> = ids
            .iter()
            .zip(&found)
            .filter(|(_, key)| key.is_none())
            .map(|(id, _)| id.as_str().to_owned())
            .collect();
        let created = if missing.is_empty() {
            HashMap::new()
        } else {
            self.writes.run(missing).await?
        };
        ids.iter()
            .zip(found)
            .map(|(id, found)| {
                let key = found.or_else(|| created.get(id.as_str()).copied());
                let key =
                    key.ok_or_else(|| Error::new(ErrorKind::Corrupt, "the dictionary created too few keys"))?;
                if found.is_none() {
                    self.cache.add_key(reading, id, key);
                    self.cache.add_id(reading, key, id);
                }
                Ok(key)
            })
            .collect()
    }

    async fn ids(&self, keys: &[UserKey]) -> Result<Vec<Option<UserId>>> {
        let reading = self.cache.begin();
        let mut ids: Vec<_> = keys.iter().map(|key| self.cache.id(*key)).collect();
        let missing: Vec<i64> = keys
            .iter()
            .zip(&ids)
            .filter(|(_, id)| id.is_none())
            .map(|(key, _)| key.0.into())
            .collect();
        if missing.is_empty() {
            return Ok(ids);
        }
        let rows: Vec<(i64, String)> = self
            .postgres
            .call("read the ids of users", || async {
                let rows = sqlx::query_as("SELECT key, id FROM herald.users WHERE key = ANY($1)")
                    .bind(&missing)
                    .fetch_all(self.postgres.pool());
                Ok(rows.await?)
            })
            .await?;
        let mut found = HashMap::with_capacity(rows.len());
        for (key, id) in rows {
            let key = keys::user(key)?;
            let id = UserId::from_stored(id)
                .map_err(|_| Error::new(ErrorKind::Corrupt, format!("the id of user {key} is malformed")))?;
            self.cache.add_id(reading, key, &id);
            self.cache.add_key(reading, &id, key);
            found.insert(key, id);
        }
        for (key, id) in keys.iter().zip(&mut ids) {
            if id.is_none() {
                *id = found.get(key).cloned();
            }
        }
        Ok(ids)
    }

    async fn last_key(&self) -> Result<Option<UserKey>> {
        let last: i64 = self
            .postgres
            .call("read the greatest key of a user", || async {
                let last = sqlx::query_scalar("SELECT last FROM herald.counters WHERE name = 'users'")
                    .fetch_one(self.postgres.pool());
                Ok(last.await?)
            })
            .await?;
        Ok((last > 0).then(|| keys::user(last)).transpose()?)
    }

    fn cached_key(&self, id: &UserId) -> Option<UserKey> {
        self.cache.key(id)
    }

    fn use_keys(&self) -> KeyUse {
        self.cache.use_keys()
    }
}
