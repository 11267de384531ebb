//! The delivery ledger: planned and recorded deliveries of each post.

use std::time::Duration;

use async_trait::async_trait;
use herald_model::{
    Channel, ChunkId, DeliveryState, DeviceId, FollowVersion, PostId, Recipients, UserKey, time::Timestamp,
};

use crate::{DeviceFailure, DeviceRetry, Outcome, Result, SettledCounts, SuppressedReason};

/// A chunk that fan-out is about to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkPlan {
    /// The channel.
    pub channel: Channel,
    /// The recipients. The id of the chunk is [`Recipients::chunk_id`].
    pub recipients: Recipients,
}

/// The chunks of one slice of a post's fan-out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePlan {
    /// The post.
    pub post: PostId,
    /// The author of the post.
    pub author: UserKey,
    /// Index of the slice, from 0.
    pub slice: u32,
    /// Follow version at which the followers were read; the same for all slices of a post.
    pub version: FollowVersion,
    /// The chunks of the slice.
    pub chunks: Vec<ChunkPlan>,
    /// Last follower of the slice: the next slice starts after it. `None` for the last slice of the post.
    pub next_after: Option<UserKey>,
}

/// The recorded outcome of a chunk, with its revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedOutcome {
    /// Number of changes of the outcome, from 1. A revision identifies one outcome of the chunk and is never reused.
    pub revision: u64,
    /// The outcome.
    pub outcome: Outcome,
}

/// Precondition of a settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectedRevision {
    /// The chunk is still at this revision; 0 if no outcome is recorded. Otherwise the settlement fails with
    /// [`Conflict`](crate::ErrorKind::Conflict), so that a worker that was paused can't overwrite a newer outcome.
    Revision(u64),
    /// No precondition. Allowed only for [`Outcome::Delivered`], which is final.
    Any,
}

/// An outcome of a chunk to record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// The post.
    pub post: PostId,
    /// The channel.
    pub channel: Channel,
    /// The chunk.
    pub chunk: ChunkId,
    /// Precondition: the revision that this outcome replaces.
    pub base: ExpectedRevision,
    /// The whole outcome of the chunk. It replaces the recorded one.
    pub outcome: Outcome,
    /// Time of the outcome.
    pub at: Timestamp,
    /// `None` ends the claim of the chunk. The holder of the claim that goes on sending passes a lease: the claim goes
    /// over to the new revision and lasts for that time from now.
    pub keep_claim: Option<Duration>,
}

/// A recipient of a post on one channel, with its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipientStatus {
    /// The recipient.
    pub user: UserKey,
    /// The state.
    pub state: DeliveryState,
    /// Why the recipient is suppressed, if known; only for this state.
    pub suppressed: Option<SuppressedReason>,
    /// Devices of a pending recipient that accepted the push.
    pub done: Vec<DeviceId>,
    /// Devices of a pending recipient that wait for their next attempt.
    pub waiting: Vec<DeviceRetry>,
    /// The last failures of a dead or expired recipient's devices; of a pending recipient, the devices that failed for
    /// good.
    pub failures: Vec<DeviceFailure>,
    /// End of the time to live of a pending recipient's push, if its chunk has recipients that waited: a redrive may
    /// have extended it.
    pub expires_at: Option<Timestamp>,
}

impl RecipientStatus {
    /// A recipient of whom only the state is known.
    pub fn new(user: UserKey, state: DeliveryState) -> Self {
        Self {
            user,
            state,
            suppressed: None,
            done: Vec::new(),
            waiting: Vec::new(),
            failures: Vec::new(),
            expires_at: None,
        }
    }
}

/// A message that became a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadMessage {
    /// The post.
    pub post: PostId,
    /// The channel.
    pub channel: Channel,
    /// The chunk.
    pub chunk: ChunkId,
    /// Generation in the payload of the message; 0 for the message of fan-out and for the timeline.
    pub generation: u32,
}

/// Result of marking a chunk dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkedDead {
    /// All dead recipients of the chunk. A redrive delivers to them.
    pub dead_recipients: Recipients,
    /// The revision of the chunk after the call.
    pub revision: u64,
    /// Number of settled recipients after the call, by state.
    pub counts: SettledCounts,
}

/// All rows of a post, for audits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PostPlan {
    /// The planned slices, ascending.
    pub slices: Vec<PlannedSlice>,
    /// The planned chunks with their outcomes.
    pub chunks: Vec<ChunkState>,
    /// Chunks with an outcome that no slice has planned. Must be empty.
    pub unplanned: Vec<(Channel, ChunkId, RecordedOutcome)>,
    /// Recipients of backfills that have put the post on timelines, or were about to.
    pub backfilled: Vec<Recipients>,
}

/// A planned slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedSlice {
    /// Index of the slice, from 0.
    pub index: u32,
    /// Whether it is the last slice of the post.
    pub last: bool,
    /// Follow version at which the followers were read; `None` in a row of an older Herald, which didn't store it.
    pub version: Option<FollowVersion>,
}

/// A planned chunk with its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkState {
    /// The channel.
    pub channel: Channel,
    /// The id.
    pub chunk: ChunkId,
    /// The recipients.
    pub recipients: Recipients,
    /// The recorded outcome; `None` if all recipients are pending.
    pub recorded: Option<RecordedOutcome>,
}

/// Number of suppressed recipients by reason. Recipients whose reason is not recorded are not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SuppressedCounts([u64; SuppressedReason::ALL.len()]);

impl SuppressedCounts {
    /// Adds recipients with this reason.
    pub fn add(&mut self, reason: SuppressedReason, count: u64) {
        // The reasons are numbered from 1, without gaps.
        self.0[reason as usize - 1] += count;
    }

    /// The reasons with at least one recipient.
    pub fn iter(&self) -> impl Iterator<Item = (SuppressedReason, u64)> {
        let counts = SuppressedReason::ALL.into_iter().zip(self.0);
        counts.filter(|(_, count)| *count > 0)
    }
}

/// Number of deliveries of a post on one channel, by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChannelCounts {
    /// Planned deliveries.
    pub targeted: u64,
    /// Delivered.
    pub delivered: u64,
    /// Not sent on purpose.
    pub suppressed: u64,
    /// Those of `suppressed` whose reason is recorded, by reason.
    pub suppressed_by: SuppressedCounts,
    /// Not sent because the TTL of the post had passed.
    pub expired: u64,
    /// Planned and not settled.
    pub pending: u64,
    /// Marked dead.
    pub dead: u64,
    /// Time of the first delivery.
    pub first_delivered_at: Option<Timestamp>,
    /// Time of the last delivery.
    pub last_delivered_at: Option<Timestamp>,
}

/// Number of deliveries of a post.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PostCounts {
    /// Whether all slices are planned. Slices are planned in order, so the last one completes the plan.
    pub planned: bool,
    /// Timeline deliveries.
    pub timeline: ChannelCounts,
    /// Push deliveries.
    pub push: ChannelCounts,
}

/// The delivery ledger: for each post and channel, the planned recipients and their outcomes.
///
/// *Invariant:* a plan is durable before its chunks are published; an outcome is durable after its effect and before its
/// message is acknowledged. So `targeted = delivered + suppressed + expired + pending + dead` at all times.
///
/// Rows are removed when the retention of the ledger ends (30 days after acceptance by default).
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Records the plan of a slice, and returns the plan to publish: this one or, for a slice that is already planned,
    /// the recorded one, which never changes. So the first call pins the followers of a post, and every retry publishes
    /// the same chunks, whatever changed in the meantime. Durable on return.
    ///
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if a recorded plan can't be read.
    async fn plan(&self, plan: SlicePlan) -> Result<SlicePlan>;

    /// Records the outcome of a chunk and returns the chunk's revision. Durable on return. An outcome equal to the
    /// recorded one keeps the revision. Ends the claim of the chunk unless it is kept ([`Settlement::keep_claim`]).
    ///
    /// [`Conflict`](crate::ErrorKind::Conflict) if the chunk is at another revision than expected,
    /// [`Invalid`](crate::ErrorKind::Invalid) for [`ExpectedRevision::Any`] with an outcome other than
    /// [`Outcome::Delivered`].
    async fn settle(&self, settlement: &Settlement) -> Result<u64>;

    /// Claims a chunk for one worker: writes its outcome again with a new revision, and returns that revision. Durable
    /// on return. A worker calls it before it sends anything that can't be taken back, and sends nothing when it fails:
    /// the outcome could not be recorded either, or another worker has the chunk.
    ///
    /// The claim lasts for `lease`, by the clock of the store; until then, or until the chunk is settled, no one else
    /// can claim it. The worker counts the lease from before the call, extends it in time
    /// ([`extend_claim`](Self::extend_claim)), and sends nothing after its end.
    ///
    /// [`Claimed`](crate::ErrorKind::Claimed) while another claim lasts.
    /// [`Conflict`](crate::ErrorKind::Conflict) if the chunk is not at revision `base`; 0 if nothing is recorded.
    async fn claim(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
        base: u64,
        lease: Duration,
    ) -> Result<u64>;

    /// Extends the claim that returned `revision`: it lasts for `lease` from now.
    ///
    /// [`Conflict`](crate::ErrorKind::Conflict) if the chunk is at another revision, or the claim was released.
    async fn extend_claim(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
        revision: u64,
        lease: Duration,
    ) -> Result<()>;

    /// Ends the claim that returned `revision` before its lease does, without an outcome. Does nothing if the chunk is
    /// at another revision.
    async fn release_claim(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
        revision: u64,
    ) -> Result<()>;

    /// Marks the pending recipients of a dead message's chunk dead, except those with a delivered device, who are
    /// marked delivered. Recipients that wait in a later generation than the message's stay pending: a copy of the
    /// message continues with them. Durable on return. Marking the chunk again changes nothing. `None` if no such chunk
    /// is planned.
    async fn mark_dead(&self, dead: &DeadMessage, at: Timestamp) -> Result<Option<MarkedDead>>;

    /// Records that a backfill is about to put posts on the timelines of recipients. Call it before the backfill does.
    /// Durable on return. Posts past the retention of the ledger are ignored.
    async fn record_backfill(&self, posts: &[PostId], recipients: &Recipients) -> Result<()>;

    /// Reads the outcome of a chunk; `None` if none is recorded.
    async fn outcome(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
    ) -> Result<Option<RecordedOutcome>>;

    /// Counts the deliveries of a post; `None` if no slice is planned.
    async fn counts(&self, post: PostId) -> Result<Option<PostCounts>>;

    /// Lists up to `limit` recipients greater than `after` that are in `state` (`None`: any), ascending, with what is
    /// known about each.
    async fn recipients(
        &self,
        post: PostId,
        channel: Channel,
        state: Option<DeliveryState>,
        after: Option<UserKey>,
        limit: usize,
    ) -> Result<Vec<RecipientStatus>>;

    /// Lists up to `limit` posts greater than `after` that have rows in the ledger, ascending.
    async fn posts(&self, after: Option<PostId>, limit: usize) -> Result<Vec<PostId>>;

    /// Reads all rows of a post from one snapshot; `None` if there are none.
    async fn audit(&self, post: PostId) -> Result<Option<PostPlan>>;
}
