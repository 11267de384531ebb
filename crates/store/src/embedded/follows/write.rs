//! Changes of the graph, batch by batch.

use std::sync::Arc;

use fjall::{OwnedWriteBatch, Snapshot};
use futures::executor::block_on;
use herald_model::time::Timestamp;

use crate::{ErrorKind, FollowAction, FollowChange, FollowEffect, Result, embedded::group_commit::Readable};

use super::{
    block::{self, Follower, Followers},
    history::{self, Edge, UndoEntry},
    tables::{Count, Tables, corrupt, pair_key, version_key},
};

/// One change. Changes are applied by author, then by follower, then in order of arrival.
#[derive(Clone, Copy)]
struct Change {
    author: u32,
    follower: u32,
    index: u32,
    action: FollowAction,
}

/// Applies changes. There is only one writer, so nothing changes between its reads and its writes.
pub(super) struct Writer {
    tables: Arc<Tables>,
    /// Time of the last versions, microseconds since 1970. Strictly ascending, so that history is trimmed in the order
    /// of versions even if the clock goes back.
    moment: i64,
    old: Vec<Follower>,
    new: Vec<Follower>,
}

/// The current batch.
struct CommitBatch {
    snapshot: Snapshot,
    batch: OwnedWriteBatch,
    effects: Vec<FollowEffect>,
    undone: Vec<UndoEntry>,
    versions: Vec<(u32, u64)>,
    /// Changed edges: follower, author and the new edge.
    edges: Vec<(u32, u32, Edge)>,
}

impl Writer {
    pub(super) fn new(tables: Arc<Tables>) -> Result<Self> {
        let moment = tables.last_moment()?.map_or(0, |moment| moment.0);
        Ok(Self {
            tables,
            moment,
            old: Vec::new(),
            new: Vec::new(),
        })
    }

    /// Applies the changes of a batch of calls in order and returns the effect of each. Durable on return. What can't
    /// be decoded fails only the calls that need it.
    pub(super) fn apply_calls(
        &mut self,
        calls: &[Vec<FollowChange>],
        readable: &Readable,
    ) -> Result<Vec<Result<Vec<FollowEffect>>>> {
        match self.apply_batch(calls, readable) {
            Err(error) if error.kind() == ErrorKind::Corrupt && calls.len() > 1 => {
                let each = calls.iter().map(|call| {
                    let effects = self.apply_batch(std::slice::from_ref(call), readable)?;
                    Ok(effects.into_iter().flatten().collect())
                });
                Ok(each.collect())
            }
            applied => Ok(applied?.into_iter().map(Ok).collect()),
        }
    }

    /// Applies the changes of all these calls, or of none.
    fn apply_batch(
        &mut self,
        calls: &[Vec<FollowChange>],
        readable: &Readable,
    ) -> Result<Vec<Vec<FollowEffect>>> {
        let mut changes: Vec<_> = calls
            .iter()
            .flatten()
            .zip(0..)
            .map(|(change, index)| Change {
                author: change.author.0,
                follower: change.follower.0,
                index,
                action: change.action,
            })
            .collect();
        changes.sort_unstable_by_key(|c| (c.author, c.follower, c.index));

        let mut pending = CommitBatch {
            snapshot: self.tables.database.snapshot(),
            batch: self.tables.database.batch(),
            effects: vec![
                FollowEffect {
                    changed: false,
                    notify: false
                };
                changes.len()
            ],
            undone: Vec::new(),
            versions: Vec::new(),
            edges: Vec::with_capacity(changes.len()),
        };
        for of_author in changes.chunk_by(|a, b| a.author == b.author) {
            self.apply_author(&mut pending, of_author)?;
        }
        let CommitBatch {
            snapshot,
            mut batch,
            effects,
            versions,
            mut edges,
            ..
        } = pending;
        drop(snapshot);
        if !versions.is_empty() {
            // Inserting in key order makes the memtable several times as fast.
            edges.sort_unstable_by_key(|(follower, author, _)| (*follower, *author));
            for (follower, author, edge) in edges {
                let key = pair_key(follower, author);
                match edge.follower(follower) {
                    Some(follow) => batch.insert(&self.tables.following, key, [u8::from(follow.notify)]),
                    None => batch.remove(&self.tables.following, key),
                }
            }
            self.moment = Timestamp::now().0.max(self.moment + 1);
            batch.insert(
                &self.tables.moments,
                self.moment.to_be_bytes(),
                history::encode_versions(&versions),
            );
            readable.mark();
            block_on(self.tables.database.commit(batch))?;
        }
        let mut rest = &effects[..];
        Ok(calls
            .iter()
            .map(|call| {
                let (these, others) = rest.split_at(call.len());
                rest = others;
                these.to_vec()
            })
            .collect())
    }

    /// Applies the changes of one author.
    fn apply_author(&mut self, pending: &mut CommitBatch, mut changes: &[Change]) -> Result<()> {
        let Some(&Change { author, .. }) = changes.first() else {
            return Ok(());
        };
        let before = self.tables.count(&pending.snapshot, author)?;
        let mut count = before;
        pending.undone.clear();
        while let Some(next) = changes.first() {
            let place = self
                .tables
                .locate_block(&pending.snapshot, author, before.blocks, next.follower)?;
            let here = place
                .end
                .map_or(changes.len(), |end| changes.partition_point(|c| c.follower < end));
            let (these, others) = changes.split_at(here);
            changes = others;

            self.old.clear();
            if let Some(bytes) = &place.bytes {
                for follower in Followers::new(bytes, place.bound).map_err(corrupt("followers", author))? {
                    self.old.push(follower.map_err(corrupt("followers", author))?);
                }
            }
            if self.edit_block(pending, &mut count, these) {
                self.replace_block(pending, &mut count, author, place.bound, place.bytes.is_some());
            }
        }
        if !pending.undone.is_empty() {
            count.version += 1;
            pending
                .batch
                .insert(&self.tables.counts, author.to_be_bytes(), count.encode());
            let key = version_key(author, count.version);
            pending
                .batch
                .insert(&self.tables.history, key, history::encode(&pending.undone));
            pending.versions.push((author, count.version));
        }
        Ok(())
    }

    /// Builds `new` from `old` and the changes of one block. Returns whether they differ.
    fn edit_block(&mut self, pending: &mut CommitBatch, count: &mut Count, changes: &[Change]) -> bool {
        let undone = pending.undone.len();
        let mut old = &self.old[..];
        self.new.clear();
        for of_follower in changes.chunk_by(|a, b| a.follower == b.follower) {
            let Change { author, follower, .. } = of_follower[0];
            let (before, rest) = old.split_at(old.partition_point(|f| f.key < follower));
            self.new.extend_from_slice(before);
            let was = match rest {
                [first, rest @ ..] if first.key == follower => {
                    old = rest;
                    Edge::following(first.notify)
                }
                _ => {
                    old = rest;
                    Edge::Absent
                }
            };
            let mut is = was;
            for change in of_follower {
                let after = is.after(change.action);
                pending.effects[change.index as usize] = FollowEffect {
                    changed: after != is,
                    notify: after == Edge::Notify,
                };
                is = after;
            }
            self.new.extend(is.follower(follower));
            if is == was {
                continue;
            }
            pending.undone.push(UndoEntry {
                follower,
                before: was,
            });
            count.followers =
                count.followers + u64::from(is != Edge::Absent) - u64::from(was != Edge::Absent);
            count.notify = count.notify + u64::from(is == Edge::Notify) - u64::from(was == Edge::Notify);
            pending.edges.push((follower, author, is));
        }
        self.new.extend_from_slice(old);
        pending.undone.len() > undone
    }

    /// Replaces a block by `new`.
    fn replace_block(
        &self,
        pending: &mut CommitBatch,
        count: &mut Count,
        author: u32,
        bound: u32,
        existed: bool,
    ) {
        count.blocks -= u64::from(existed);
        if self.new.is_empty() && bound != 0 {
            pending.batch.remove(&self.tables.blocks, pair_key(author, bound));
            return;
        }
        for (bound, part) in block::split(bound, &self.new) {
            pending.batch.insert(
                &self.tables.blocks,
                pair_key(author, bound),
                block::encode(bound, part),
            );
            count.blocks += 1;
        }
    }
}
