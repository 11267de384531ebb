//! The follow graph: blocks of followers by author, with counts, versions and an undo log.
//!
//! | keyspace | row |
//! |---|---|
//! | `followers` | (author, bound) → [`block`] |
//! | `follow_counts` | author → number of followers, of those with notifications on, and of blocks, version |
//! | `follow_history` | (author, version) → the edges before that version: the undo log |
//! | `follow_moments` | time → the versions created at that time, the index for retention |
//! | `following` | (follower, author) → notify |
//!
//! A read at an older version reads the current blocks and undoes, follower by follower, the changes of later versions,
//! all from one snapshot of the database.

pub(crate) mod block;
mod erase;
pub(crate) mod history;
mod read;
pub(crate) mod tables;
#[cfg(test)]
mod tests;
mod write;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use fjall::{Readable, Snapshot};
use herald_model::{FollowVersion, UserKey, time::Timestamp};

use self::{
    block::Followers,
    history::{Undo, UndoEntry},
    read::PageBuilder,
    tables::{Tables, corrupt, decode_version, malformed, pair_key, second_user, version_key},
    write::Writer,
};
use super::{
    cache::ENTRY_BYTES,
    database::{Database, map_err},
    group_commit::GroupCommit,
};
use crate::{Error, ErrorKind, FollowChange, FollowEffect, FollowerCount, FollowerPage, Following, Result};

/// Number of changes at which a batch takes no more calls.
const BATCH_CHANGES_MAX: usize = 2_000;

/// Approximate number of versions that one commit of [`EmbeddedFollows::trim`] removes.
const TRIM_VERSIONS_MAX: usize = 10_000;

/// The embedded engine's [`Follows`](crate::Follows).
pub(crate) struct EmbeddedFollows {
    tables: Arc<Tables>,
    writes: GroupCommit<Vec<FollowChange>, Vec<FollowEffect>>,
    /// (author, version) → the edges to undo to read that version.
    undos: moka::sync::Cache<(u32, u64), Arc<Undo>>,
    history_keep: Duration,
}

impl EmbeddedFollows {
    /// Opens the graph. `history_keep` is the retention of the history; `undo_bytes_max` bounds the cache of undo
    /// edges.
    pub(crate) fn open(
        database: &Arc<Database>,
        history_keep: Duration,
        undo_bytes_max: u64,
    ) -> Result<Self> {
        let tables = Arc::new(Tables::open(database)?);
        let mut writer = Writer::new(Arc::clone(&tables))?;
        let writes =
            GroupCommit::start_marking("follows", BATCH_CHANGES_MAX, Vec::len, move |calls, readable| {
                writer.apply_calls(&calls, readable)
            })?;
        let undos = moka::sync::Cache::builder()
            .name("follow-undos")
            .max_capacity(undo_bytes_max)
            .weigher(|_, undo: &Arc<Undo>| {
                u32::try_from(size_of::<UndoEntry>() * undo.edges.len() + ENTRY_BYTES).unwrap_or(u32::MAX)
            })
            .build();
        Ok(Self {
            tables,
            writes,
            undos,
            history_keep,
        })
    }

    /// Removes history past its retention and returns the number of versions.
    pub(crate) async fn trim(&self, now: Timestamp) -> Result<usize> {
        let keep = i64::try_from(self.history_keep.as_micros()).unwrap_or(i64::MAX);
        let end = now.0.saturating_sub(keep).max(0).to_be_bytes();
        let mut removed = 0;
        loop {
            let mut batch = self.tables.database.batch();
            let mut versions = 0;
            for row in self.tables.moments.range(..end) {
                let (time, versions_then) = row.into_inner().map_err(map_err)?;
                for (author, version) in history::decode_versions(&versions_then).map_err(|_| {
                    Error::new(
                        ErrorKind::Corrupt,
                        "can't decode a row of the keyspace follow_moments",
                    )
                })? {
                    batch.remove(&self.tables.history, version_key(author, version));
                    versions += 1;
                }
                batch.remove(&self.tables.moments, time);
                if versions >= TRIM_VERSIONS_MAX {
                    break;
                }
            }
            if batch.is_empty() {
                return Ok(removed);
            }
            self.tables.database.commit(batch).await?;
            removed += versions;
        }
    }

    /// The edges to undo to read version `from` when `current` is the newest version.
    fn undo(&self, snapshot: &Snapshot, author: u32, from: u64, current: u64) -> Result<Arc<Undo>> {
        let cached = self.undos.get(&(author, from));
        if let Some(cached) = &cached
            && cached.until >= current
        {
            return Ok(Arc::clone(cached));
        }
        let cached = cached.unwrap_or_else(|| {
            Arc::new(Undo {
                until: from,
                edges: Vec::new(),
            })
        });
        let mut more = Vec::new();
        let mut next = cached.until + 1;
        for row in snapshot.range(
            &self.tables.history,
            version_key(author, next)..=version_key(author, current),
        ) {
            let (key, replaced) = row.into_inner().map_err(map_err)?;
            if decode_version(&key) != Some(next) {
                return Err(read::trimmed(author, from));
            }
            history::decode(&replaced, &mut more).map_err(corrupt("history", author))?;
            next += 1;
        }
        if next != current + 1 {
            return Err(read::trimmed(author, from));
        }
        let undo = Arc::new(cached.extend(current, more));
        self.undos.insert((author, from), Arc::clone(&undo));
        Ok(undo)
    }

    fn page(&self, author: u32, at: Option<u64>, after: Option<u32>, limit: usize) -> Result<FollowerPage> {
        let snapshot = self.tables.database.snapshot();
        let count = self.tables.count(&snapshot, author)?;
        let version = at.unwrap_or(count.version);
        if version > count.version {
            return Err(read::unknown_version(author, version, count.version));
        }
        let undo = if version < count.version {
            Some(self.undo(&snapshot, author, version, count.version)?)
        } else {
            None
        };
        let Some(first) = after.map_or(Some(0), |after| after.checked_add(1)) else {
            return Ok(read::empty_page(version));
        };
        let mut undone = undo.as_ref().map_or(&[][..], |undo| undo.after(after));
        let mut page = PageBuilder::new(limit);
        for block in self.tables.blocks_from(&snapshot, author, count.blocks, first)? {
            let (bound, bytes) = block?;
            let followers = Followers::new(&bytes, bound).map_err(corrupt("followers", author))?;
            if !page
                .extend(followers, after, &mut undone)
                .map_err(corrupt("followers", author))?
            {
                return Ok(page.finish(version));
            }
        }
        page.undo_rest(undone);
        Ok(page.finish(version))
    }
}

#[async_trait]
impl crate::Follows for EmbeddedFollows {
    async fn apply(&self, changes: &[FollowChange]) -> Result<Vec<FollowEffect>> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        can_fail!("store.follow");
        self.writes.run(changes.to_vec()).await
    }

    async fn count(&self, author: UserKey) -> Result<FollowerCount> {
        let count = self.tables.count(&self.tables.database.snapshot(), author.0)?;
        // A loss of power must not take back what the caller was told.
        self.writes.wait_durable().await?;
        Ok(FollowerCount {
            followers: count.followers,
            notify: count.notify,
            version: FollowVersion(count.version),
        })
    }

    async fn followers(
        &self,
        author: UserKey,
        at: Option<FollowVersion>,
        after: Option<UserKey>,
        limit: usize,
    ) -> Result<FollowerPage> {
        let page = self.page(author.0, at.map(|v| v.0), after.map(|k| k.0), limit)?;
        if at.is_none() {
            // Fan-out pins this version: a loss of power must not revert it.
            self.writes.wait_durable().await?;
        }
        Ok(page)
    }

    async fn following(
        &self,
        follower: UserKey,
        after: Option<UserKey>,
        limit: usize,
    ) -> Result<Vec<Following>> {
        let Some(first) = after.map_or(Some(0), |after| after.0.checked_add(1)) else {
            return Ok(Vec::new());
        };
        let range = pair_key(follower.0, first)..=pair_key(follower.0, u32::MAX);
        self.tables
            .database
            .snapshot()
            .range(&self.tables.following, range)
            .take(limit)
            .map(|row| {
                let (key, notify) = row.into_inner().map_err(map_err)?;
                let notify = match *notify {
                    [0] => false,
                    [1] => true,
                    _ => return Err(malformed("follows", follower.0)),
                };
                Ok(Following {
                    author: UserKey(second_user(&key)?),
                    notify,
                })
            })
            .collect()
    }

    async fn erase(&self, user: UserKey) -> Result<u64> {
        self.erase_all(user).await
    }
}
