//! The dictionary of users: `user_keys` (id → key) and `user_ids` (key → id), both behind caches.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use fjall::Keyspace;
use futures::executor::block_on;
use herald_model::{PostId, UserId, UserKey, time::Timestamp};

use super::{
    database::{self, Database, map_err},
    erasures::{self, Begin},
    group_commit::{GroupCommit, Readable},
};
use crate::{
    Erasure, Error, ErrorKind, Result,
    erasures::placeholder,
    users_cache::{KeyUse, UsersCache},
};

/// Number of users at which a batch takes no more calls.
const BATCH_USERS_MAX: usize = 2_000;

/// The embedded engine's [`Users`](crate::Users).
pub(crate) struct EmbeddedUsers {
    tables: Arc<Tables>,
    writes: GroupCommit<Job, Done>,
}

/// The rows of users and their cache.
struct Tables {
    database: Arc<Database>,
    keys: Keyspace,
    ids: Keyspace,
    cache: UsersCache,
    erasures: Arc<erasures::Tables>,
}

/// What the writer thread does.
enum Job {
    Intern(Vec<UserId>),
    Forget(Begin),
    ForgetAgain(BeginAgain),
}

/// An erased user of whom a post has come late.
struct BeginAgain {
    user: UserKey,
    post: PostId,
    actor: String,
    now: Timestamp,
}

enum Done {
    Interned(Vec<UserKey>),
    Begun(Option<Erasure>),
}

impl EmbeddedUsers {
    /// Opens the dictionary. `cache_bytes_max` bounds the cache of each direction.
    pub(crate) fn open(database: &Arc<Database>, cache_bytes_max: u64) -> Result<Self> {
        let tables = Arc::new(Tables {
            keys: database.keyspace("user_keys", database::options)?,
            ids: database.keyspace("user_ids", database::options)?,
            cache: UsersCache::new(cache_bytes_max),
            erasures: Arc::new(erasures::Tables::open(database)?),
            database: Arc::clone(database),
        });
        let mut last = tables.last()?;
        let shared = Arc::clone(&tables);
        let weigh = |job: &Job| match job {
            Job::Intern(ids) => ids.len(),
            Job::Forget(_) | Job::ForgetAgain(_) => BATCH_USERS_MAX,
        };
        let writes = GroupCommit::start_marking("users", BATCH_USERS_MAX, weigh, move |jobs, readable| {
            shared.run(&mut last, jobs, readable)
        })?;
        Ok(Self { tables, writes })
    }

    /// The erasures of users.
    pub(super) fn erasures(&self) -> &Arc<erasures::Tables> {
        &self.tables.erasures
    }

    /// Forgets an id, as [`Erasures::begin`](crate::Erasures::begin) does.
    pub(super) async fn forget(&self, id: UserId, actor: String, now: Timestamp) -> Result<Option<Erasure>> {
        self.begin(Job::Forget(Begin { id, actor, now })).await
    }

    /// Records another erasure, as [`Erasures::begin_again`](crate::Erasures::begin_again) does.
    pub(super) async fn forget_again(
        &self,
        user: UserKey,
        post: PostId,
        actor: String,
        now: Timestamp,
    ) -> Result<Option<Erasure>> {
        let again = BeginAgain {
            user,
            post,
            actor,
            now,
        };
        self.begin(Job::ForgetAgain(again)).await
    }

    async fn begin(&self, job: Job) -> Result<Option<Erasure>> {
        match self.writes.run(job).await? {
            Done::Begun(erasure) => Ok(erasure),
            Done::Interned(_) => Err(mixed_up()),
        }
    }
}

fn mixed_up() -> Error {
    Error::new(ErrorKind::Corrupt, "the dictionary answered another call")
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

    /// Does a batch of jobs, in their order. `last` is the greatest key in use.
    fn run(&self, last: &mut u32, jobs: Vec<Job>, readable: &Readable) -> Result<Vec<Result<Done>>> {
        let mut answers = Vec::with_capacity(jobs.len());
        let mut calls = Vec::with_capacity(jobs.len());
        for job in jobs {
            match job {
                Job::Intern(ids) => calls.push(ids),
                Job::Forget(begin) => {
                    // A call before it can have the id to forget, so that call's keys must be readable first.
                    answers.extend(self.intern(last, std::mem::take(&mut calls), readable)?);
                    answers.push(self.forget(&begin, readable).map(Done::Begun));
                }
                Job::ForgetAgain(again) => answers.push(self.forget_again(again).map(Done::Begun)),
            }
        }
        answers.extend(self.intern(last, calls, readable)?);
        Ok(answers)
    }

    /// Gives the key of an id a placeholder, and records the erasure.
    fn forget(&self, begin: &Begin, readable: &Readable) -> Result<Option<Erasure>> {
        let Some(key) = self.key(&begin.id)? else {
            return self.erasures.running_of(&begin.id);
        };
        if self.erasures.is_erased(key)? {
            // Its id is a placeholder, which no user has.
            return Ok(None);
        }
        let placeholder = placeholder()?;
        let mut batch = self.database.batch();
        batch.remove(&self.keys, begin.id.as_str());
        batch.insert(&self.ids, key.0.to_be_bytes(), placeholder.as_str());
        batch.insert(&self.keys, placeholder.as_str(), key.0.to_be_bytes());
        let erasure = self.erasures.add_to(&mut batch, key, begin)?;
        self.erasures.wait_for(erasure.id, None);
        readable.mark();
        let committed = block_on(self.database.commit(batch));
        self.cache.forget(&begin.id, key);
        self.erasures.wait_for(erasure.id, Some(self.cache.uses()));
        committed.map(|()| Some(erasure))
    }

    /// Records another erasure of an erased user.
    fn forget_again(&self, again: BeginAgain) -> Result<Option<Erasure>> {
        let BeginAgain {
            user,
            post,
            actor,
            now,
        } = again;
        if !self.erasures.is_erased(user)? || self.erasures.will_find(user, post)? {
            return Ok(None);
        }
        let id = placeholder()?;
        let mut batch = self.database.batch();
        let erasure = self
            .erasures
            .add_to(&mut batch, user, &Begin { id, actor, now })?;
        block_on(self.database.commit(batch))?;
        Ok(Some(erasure))
    }

    /// Finds or creates the keys of a batch of calls. `last` is the greatest key in use.
    fn intern(
        &self,
        last: &mut u32,
        calls: Vec<Vec<UserId>>,
        readable: &Readable,
    ) -> Result<Vec<Result<Done>>> {
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
            answers.push(Ok(Done::Interned(keys)));
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
        let cache = &self.tables.cache;
        let reading = cache.begin();
        let mut keys = Vec::with_capacity(ids.len());
        let mut loaded = Vec::new();
        for id in ids {
            let mut key = cache.key(id);
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
                cache.add_key(reading, id, key);
            }
        }
        Ok(keys)
    }

    async fn intern(&self, ids: &[UserId]) -> Result<Vec<UserKey>> {
        let cache = &self.tables.cache;
        let reading = cache.begin();
        let found = self.find(ids).await?;
        let missing: Vec<_> = ids
            .iter()
            .zip(&found)
            .filter(|(_, key)| key.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        let mut created = Vec::new().into_iter();
        if !missing.is_empty() {
            let Done::Interned(keys) = self.writes.run(Job::Intern(missing.clone())).await? else {
                return Err(mixed_up());
            };
            for (id, key) in missing.iter().zip(&keys) {
                cache.add_id(reading, *key, id);
                cache.add_key(reading, id, *key);
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
        let cache = &self.tables.cache;
        let reading = cache.begin();
        keys.iter()
            .map(|key| {
                if let Some(id) = cache.id(*key) {
                    return Ok(Some(id));
                }
                let id = self.tables.id(*key)?;
                if let Some(id) = &id {
                    cache.add_id(reading, *key, id);
                }
                Ok(id)
            })
            .collect()
    }

    fn cached_key(&self, id: &UserId) -> Option<UserKey> {
        self.tables.cache.key(id)
    }

    fn use_keys(&self) -> KeyUse {
        self.tables.cache.use_keys()
    }
}
