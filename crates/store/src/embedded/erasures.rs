//! Erasures: one row each, with indexes of those that run and of the keys of erased users.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use fjall::{Keyspace, OwnedWriteBatch};
use herald_model::{PostId, UserId, UserKey, time::Timestamp};
use parking_lot::Mutex;
use prost::Message;

use super::{
    database::{self, Committed, Database, map_err},
    users::EmbeddedUsers,
};
use crate::{
    ErasedCounts, Erasure, ErasureId, Forgotten, Result,
    erasures::{corrupt, missing},
    users_cache::Uses,
};

/// Name of the keyspace of [`Row`]s.
pub(crate) const KEYSPACE: &str = "erasures";

/// The embedded engine's [`Erasures`](crate::Erasures).
pub(crate) struct EmbeddedErasures {
    tables: Arc<Tables>,
    /// The dictionary, whose writer begins erasures.
    users: Arc<EmbeddedUsers>,
}

/// The rows of erasures.
pub(super) struct Tables {
    database: Arc<Database>,
    /// id, big-endian → [`Row`].
    rows: Keyspace,
    /// The ids of those that are not complete.
    running: Keyspace,
    /// user → id of the newest one.
    users: Keyspace,
    /// Held from the read of a row until its change is applied.
    writing: Mutex<()>,
    /// The calls that can use the keys of erased users still; `None` until the key is forgotten.
    uses: Mutex<HashMap<ErasureId, Option<Uses>>>,
}

#[derive(Clone, PartialEq, Message)]
struct Row {
    #[prost(uint32, tag = "1")]
    user: u32,
    #[prost(string, optional, tag = "2")]
    user_id: Option<String>,
    #[prost(string, tag = "3")]
    actor: String,
    #[prost(int64, tag = "4")]
    requested_at: i64,
    #[prost(int64, optional, tag = "5")]
    completed_at: Option<i64>,
    #[prost(uint64, tag = "6")]
    posts: u64,
    #[prost(uint64, tag = "7")]
    follows: u64,
    #[prost(uint64, tag = "8")]
    devices: u64,
    #[prost(uint64, tag = "9")]
    timeline_entries: u64,
    #[prost(uint64, tag = "10")]
    messages: u64,
    #[prost(uint64, tag = "11")]
    dead_letters: u64,
    #[prost(int64, optional, tag = "12")]
    forgotten_at: Option<i64>,
    /// Present if `forgotten_at` is.
    #[prost(uint64, optional, tag = "13")]
    last_post: Option<u64>,
}

/// A user to erase.
pub(super) struct Begin {
    pub(super) id: UserId,
    pub(super) actor: String,
    pub(super) now: Timestamp,
}

impl Tables {
    pub(super) fn open(database: &Arc<Database>) -> Result<Self> {
        Ok(Self {
            rows: database.keyspace(KEYSPACE, database::options)?,
            running: database.keyspace("erasures_running", database::options)?,
            users: database.keyspace("erased_users", database::options)?,
            database: Arc::clone(database),
            writing: Mutex::default(),
            uses: Mutex::default(),
        })
    }

    /// Whether a key is that of an erased user.
    pub(super) fn is_erased(&self, user: UserKey) -> Result<bool> {
        self.users.contains_key(user.0.to_be_bytes()).map_err(map_err)
    }

    /// Adds the next erasure to a batch. Only the writer of the dictionary calls this.
    pub(super) fn add_to(
        &self,
        batch: &mut OwnedWriteBatch,
        user: UserKey,
        begin: &Begin,
    ) -> Result<Erasure> {
        let last = self.rows.last_key_value();
        let last = last
            .map(|row| decode_id(&row.key().map_err(map_err)?))
            .transpose()?;
        let erasure = Erasure {
            id: ErasureId(last.map_or(0, |last| last.0) + 1),
            user,
            user_id: Some(begin.id.clone()),
            actor: begin.actor.clone(),
            requested_at: begin.now,
            forgotten: None,
            completed_at: None,
            counts: ErasedCounts::default(),
        };
        let id = erasure.id.0.to_be_bytes();
        batch.insert(&self.rows, id, encode(&erasure));
        batch.insert(&self.running, id, []);
        batch.insert(&self.users, user.0.to_be_bytes(), id);
        Ok(erasure)
    }

    /// Lets an erasure wait for calls that use keys.
    pub(super) fn wait_for(&self, id: ErasureId, uses: Option<Uses>) {
        self.uses.lock().insert(id, uses);
    }

    /// Whether the calls that an erasure waits for have ended.
    fn is_unused(&self, id: ErasureId) -> bool {
        let mut uses = self.uses.lock();
        match uses.get(&id) {
            Some(Some(used)) if used.have_ended() => {
                uses.remove(&id);
                true
            }
            Some(_) => false,
            // The calls have ended, or the erasure began before this process.
            None => true,
        }
    }

    /// The newest erasure that is not complete and has this id of a user.
    pub(super) fn running_of(&self, id: &UserId) -> Result<Option<Erasure>> {
        let mut newest_first = self.running()?.into_iter().rev();
        Ok(newest_first.find(|erasure| erasure.user_id.as_ref() == Some(id)))
    }

    /// Whether an erasure of a user that runs will find a post.
    pub(super) fn will_find(&self, user: UserKey, post: PostId) -> Result<bool> {
        let running = self.running()?;
        Ok(running
            .iter()
            .any(|erasure| erasure.user == user && erasure.will_find(post)))
    }

    fn running(&self) -> Result<Vec<Erasure>> {
        let mut running = Vec::new();
        for row in self.running.iter() {
            let id = decode_id(&row.key().map_err(map_err)?)?;
            // It can have been completed since.
            running.extend(self.get(id)?.filter(|erasure| erasure.completed_at.is_none()));
        }
        Ok(running)
    }

    fn get(&self, id: ErasureId) -> Result<Option<Erasure>> {
        let row = self.rows.get(id.0.to_be_bytes()).map_err(map_err)?;
        row.map(|row| decode(id, &row)).transpose()
    }

    /// Changes an erasure.
    fn change(&self, id: ErasureId, change: impl FnOnce(&mut Erasure)) -> Result<Committed> {
        let _writing = self.writing.lock();
        let mut erasure = self.get(id)?.ok_or_else(|| missing(id))?;
        change(&mut erasure);
        let mut batch = self.database.batch();
        batch.insert(&self.rows, id.0.to_be_bytes(), encode(&erasure));
        if erasure.completed_at.is_some() {
            batch.remove(&self.running, id.0.to_be_bytes());
        }
        self.database.apply(batch)
    }

    fn list(&self, before: Option<ErasureId>, limit: usize) -> Result<Vec<Erasure>> {
        let before = before.map_or(u64::MAX, |before| before.0);
        let rows = self.rows.range(..before.to_be_bytes()).rev().take(limit);
        rows.map(|row| {
            let (id, row) = row.into_inner().map_err(map_err)?;
            decode(decode_id(&id)?, &row)
        })
        .collect()
    }
}

impl EmbeddedErasures {
    pub(super) fn new(users: &Arc<EmbeddedUsers>) -> Self {
        Self {
            tables: Arc::clone(users.erasures()),
            users: Arc::clone(users),
        }
    }
}

#[async_trait]
impl crate::Erasures for EmbeddedErasures {
    async fn begin(&self, id: &UserId, actor: &str, now: Timestamp) -> Result<Option<Erasure>> {
        can_fail!("store.erasure.begin");
        self.users.forget(id.clone(), actor.into(), now).await
    }

    async fn begin_again(
        &self,
        user: UserKey,
        post: PostId,
        actor: &str,
        now: Timestamp,
    ) -> Result<Option<Erasure>> {
        self.users.forget_again(user, post, actor.into(), now).await
    }

    async fn get(&self, id: ErasureId) -> Result<Option<Erasure>> {
        self.tables.get(id)
    }

    async fn running(&self) -> Result<Vec<Erasure>> {
        self.tables.running()
    }

    /// This process is the only one, and has forgotten the user when the erasure began.
    async fn is_forgotten(&self, id: ErasureId) -> Result<bool> {
        Ok(self.tables.is_unused(id))
    }

    async fn record_forgotten(&self, id: ErasureId, forgotten: &Forgotten) -> Result<()> {
        let recorded = self.tables.change(id, |erasure| {
            erasure.forgotten.get_or_insert(*forgotten);
        })?;
        recorded.await
    }

    async fn add(&self, id: ErasureId, counts: &ErasedCounts) -> Result<()> {
        let added = self
            .tables
            .change(id, |erasure| erasure.counts = erasure.counts.plus(counts))?;
        added.await
    }

    async fn complete(&self, id: ErasureId, now: Timestamp) -> Result<()> {
        let completed = self.tables.change(id, |erasure| {
            erasure.user_id = None;
            erasure.completed_at.get_or_insert(now);
        })?;
        completed.await
    }

    async fn list(&self, before: Option<ErasureId>, limit: usize) -> Result<Vec<Erasure>> {
        self.tables.list(before, limit)
    }
}

fn encode(erasure: &Erasure) -> Vec<u8> {
    let counts = &erasure.counts;
    let row = Row {
        user: erasure.user.0,
        user_id: erasure.user_id.as_ref().map(|id| id.as_str().into()),
        actor: erasure.actor.clone(),
        requested_at: erasure.requested_at.0,
        completed_at: erasure.completed_at.map(|at| at.0),
        forgotten_at: erasure.forgotten.map(|forgotten| forgotten.at.0),
        last_post: erasure.forgotten.map(|forgotten| forgotten.last_post.0),
        posts: counts.posts,
        follows: counts.follows,
        devices: counts.devices,
        timeline_entries: counts.timeline_entries,
        messages: counts.messages,
        dead_letters: counts.dead_letters,
    };
    row.encode_to_vec()
}

/// Decodes the key of a row.
pub(crate) fn decode_id(key: &[u8]) -> Result<ErasureId> {
    let id = key.try_into().map_err(|_| corrupt())?;
    Ok(ErasureId(u64::from_be_bytes(id)))
}

/// Decodes a row.
pub(crate) fn decode(id: ErasureId, row: &[u8]) -> Result<Erasure> {
    let row = Row::decode(row).map_err(|_| corrupt())?;
    let user_id = row.user_id.map(UserId::from_stored).transpose();
    Ok(Erasure {
        id,
        user: UserKey(row.user),
        user_id: user_id.map_err(|_| corrupt())?,
        actor: row.actor,
        requested_at: Timestamp(row.requested_at),
        forgotten: Forgotten::decode(row.forgotten_at, row.last_post)?,
        completed_at: row.completed_at.map(Timestamp),
        counts: ErasedCounts {
            posts: row.posts,
            follows: row.follows,
            devices: row.devices,
            timeline_entries: row.timeline_entries,
            messages: row.messages,
            dead_letters: row.dead_letters,
        },
    })
}
