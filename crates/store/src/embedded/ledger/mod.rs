//! The ledger: planned deliveries of each post and their outcomes.
//!
//! | key | value |
//! |---|---|
//! | post, 0, slice | whether the slice is the last, number of recipients by channel, follow version, chunk ids |
//! | post, 1, channel, chunk | outcome of the chunk; counts and times come first |
//! | post, 2, channel, chunk | recipients of the chunk |
//! | post, 3, timeline, hash | recipients to whose timelines a backfill added the post |
//!
//! Counting reads only slices and the heads of outcomes, never a set of recipients.

mod audit;
mod claims;
mod plan;
mod recipients;
pub(crate) mod row;
pub(crate) mod settle;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use fjall::Keyspace;
use herald_model::{Channel, ChunkId, DeliveryState, PostId, Recipients, UserKey, time::Timestamp};
use parking_lot::Mutex;

use self::{
    claims::Claims,
    recipients::RecipientsQuery,
    row::{OutcomeHead, RowKind},
    settle::OutcomeLocks,
};
use super::{
    blocking::read_blocking,
    database::{self, Database, map_err},
    trim_watermark::TrimWatermark,
};
use crate::{
    ChannelCounts, DeadMessage, MarkedDead, Outcome, PostCounts, PostPlan, RecipientStatus, RecordedOutcome,
    Result, Settlement, SlicePlan,
};

/// Memtable size of the ledger in bytes. Recipients of chunks are most of the data written to `records/`.
const MEMTABLE_BYTES: u64 = 32 << 20;

/// The embedded engine's [`Ledger`](crate::Ledger).
pub(crate) struct Ledger {
    database: Arc<Database>,
    rows: Keyspace,
    outcome_locks: OutcomeLocks,
    claims: Claims,
    plan_lock: Mutex<()>,
    trim_watermark: TrimWatermark,
}

impl Ledger {
    /// Opens the ledger.
    pub(crate) fn open(database: &Arc<Database>) -> Result<Self> {
        let options = || database::options().max_memtable_size(MEMTABLE_BYTES);
        Ok(Self {
            rows: database.keyspace("ledger", options)?,
            database: Arc::clone(database),
            outcome_locks: OutcomeLocks::default(),
            claims: Claims::default(),
            plan_lock: Mutex::default(),
            trim_watermark: TrimWatermark::default(),
        })
    }

    /// The first post that may have rows.
    pub(crate) fn first_post(&self) -> Result<PostId> {
        self.trim_watermark.first_with_rows(&self.rows)
    }

    /// Deletes the rows of all posts with smaller ids. Returns the number of deleted rows.
    pub(crate) async fn trim(&self, before: PostId) -> Result<usize> {
        self.trim_watermark.trim(&self.database, &self.rows, before).await
    }

    fn outcome_row(&self, post: PostId, channel: Channel, chunk: ChunkId) -> Result<Option<fjall::Slice>> {
        self.rows
            .get(row::chunk_key(post, RowKind::Outcome, channel, chunk))
            .map_err(map_err)
    }
}

impl ChannelCounts {
    fn add(&mut self, head: &OutcomeHead) {
        self.delivered += u64::from(head.counts.delivered);
        self.suppressed += u64::from(head.counts.suppressed);
        self.expired += u64::from(head.counts.expired);
        self.dead += u64::from(head.counts.dead);
        if let Some((first, last)) = head.delivered_at {
            self.first_delivered_at = Some(self.first_delivered_at.map_or(first, |at| at.min(first)));
            self.last_delivered_at = self.last_delivered_at.max(Some(last));
        }
    }

    fn compute_pending(&mut self) {
        let settled = self.delivered + self.suppressed + self.expired + self.dead;
        self.pending = self.targeted.saturating_sub(settled);
    }
}

#[async_trait]
impl crate::Ledger for Ledger {
    async fn plan(&self, plan: SlicePlan) -> Result<SlicePlan> {
        can_fail!("store.plan");
        self.plan_once(plan).await
    }

    async fn settle(&self, settlement: &Settlement) -> Result<u64> {
        can_fail!("store.settle");
        let revision = self.record(settlement).await;
        can_fail!("store.settled");
        revision
    }

    async fn claim(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
        base: u64,
        lease: Duration,
    ) -> Result<u64> {
        can_fail!("store.claim");
        self.write_claim(post, channel, chunk, base, lease).await
    }

    async fn extend_claim(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
        revision: u64,
        lease: Duration,
    ) -> Result<()> {
        self.claims.extend(post, channel, chunk, revision, lease)
    }

    async fn release_claim(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
        revision: u64,
    ) -> Result<()> {
        self.claims.release(post, channel, chunk, revision);
        Ok(())
    }

    async fn mark_dead(&self, dead: &DeadMessage, at: Timestamp) -> Result<Option<MarkedDead>> {
        self.mark_pending_dead(dead, at).await
    }

    async fn record_backfill(&self, posts: &[PostId], recipients: &Recipients) -> Result<()> {
        let first = self.trim_watermark.first();
        let value = row::encode_chunk(recipients);
        let mut batch = self.database.batch();
        // Trimmed posts get no new rows.
        for post in posts.iter().filter(|post| **post >= first) {
            let key = row::chunk_key(*post, RowKind::Backfill, Channel::Timeline, recipients.chunk_id());
            batch.insert(&self.rows, key, &value[..]);
        }
        self.database.commit(batch).await
    }

    async fn outcome(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
    ) -> Result<Option<RecordedOutcome>> {
        can_fail!("store.outcome");
        self.outcome_row(post, channel, chunk)?
            .map(|row| row::decode_outcome(&row))
            .transpose()
    }

    async fn counts(&self, post: PostId) -> Result<Option<PostCounts>> {
        let mut counts = PostCounts::default();
        let mut found_slice = false;
        for entry in self.rows.prefix(row::prefix(post, RowKind::Slice)) {
            let slice = row::Slice::decode(&entry.value().map_err(map_err)?)?;
            found_slice = true;
            counts.planned |= slice.last;
            counts.timeline.targeted += slice.timeline;
            counts.push.targeted += slice.push;
        }
        if !found_slice {
            return Ok(None);
        }
        for entry in self.rows.prefix(row::prefix(post, RowKind::Outcome)) {
            let (key, value) = entry.into_inner().map_err(map_err)?;
            let head = row::decode_head(&value)?;
            let channel = match row::read_chunk_key(&key)?.0 {
                Channel::Timeline => &mut counts.timeline,
                Channel::Push => &mut counts.push,
            };
            channel.add(&head);
            if head.counts.suppressed > 0 {
                for (reason, users) in row::read_suppressed(&value)? {
                    channel.suppressed_by.add(reason, u64::from(users.len()));
                }
            }
        }
        counts.timeline.compute_pending();
        counts.push.compute_pending();
        Ok(Some(counts))
    }

    async fn recipients(
        &self,
        post: PostId,
        channel: Channel,
        state: Option<DeliveryState>,
        after: Option<UserKey>,
        limit: usize,
    ) -> Result<Vec<RecipientStatus>> {
        let query = RecipientsQuery {
            post,
            channel,
            state,
            after,
            limit,
        };
        let (rows, snapshot) = (self.rows.clone(), self.database.snapshot());
        read_blocking("the recipients of a post", move || query.read(&rows, &snapshot)).await
    }

    async fn posts(&self, after: Option<PostId>, limit: usize) -> Result<Vec<PostId>> {
        self.posts_after(after, limit)
    }

    async fn audit(&self, post: PostId) -> Result<Option<PostPlan>> {
        self.plan_of(post)
    }
}

/// The recipients of a chunk with their states.
pub(crate) fn recipient_states(
    recipients: &Recipients,
    outcome: Option<&Outcome>,
) -> Vec<(UserKey, DeliveryState)> {
    let all_are = |state| recipients.iter().map(|user| (user, state)).collect();
    match outcome {
        None => all_are(DeliveryState::Pending),
        Some(Outcome::Delivered { .. }) => all_are(DeliveryState::Delivered),
        Some(Outcome::Mixed {
            delivered,
            suppressed,
            expired,
            dead,
            ..
        }) => {
            let sets = [
                (delivered, DeliveryState::Delivered),
                (suppressed, DeliveryState::Suppressed),
                (expired, DeliveryState::Expired),
                (dead, DeliveryState::Dead),
            ];
            let settled: HashMap<UserKey, DeliveryState> = sets
                .iter()
                .flat_map(|(set, state)| set.iter().map(|user| (user, *state)))
                .collect();
            let state = |user| settled.get(&user).copied().unwrap_or(DeliveryState::Pending);
            recipients.iter().map(|user| (user, state(user))).collect()
        }
    }
}

/// A recipient in this state with the details of the chunk's outcome.
pub(crate) fn status(user: UserKey, state: DeliveryState, outcome: Option<&Outcome>) -> RecipientStatus {
    let mut status = RecipientStatus::new(user, state);
    let Some(Outcome::Mixed { details, .. }) = outcome else {
        return status;
    };
    match state {
        DeliveryState::Delivered => {}
        DeliveryState::Suppressed => status.suppressed = details.suppressed(user),
        DeliveryState::Pending => {
            status.expires_at = details.expires_at;
            if let Some(pending) = details.pending(user) {
                status.done.clone_from(&pending.done);
                status.waiting.clone_from(&pending.waiting);
                status.failures.clone_from(&pending.failed);
            }
        }
        DeliveryState::Expired | DeliveryState::Dead => {
            if let Some(failed) = details.failed(user) {
                status.failures.clone_from(&failed.failures);
            }
        }
    }
    status
}
