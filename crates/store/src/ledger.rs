//! The delivery ledger: planned and recorded deliveries of each post.

use async_trait::async_trait;
use herald_model::{
    Channel, ChunkId, DeliveryState, DeviceId, FollowVersion, PostId, Recipients, UserKey, time::Timestamp,
};

use crate::Result;

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
    /// Index of the slice, from 0.
    pub slice: u32,
    /// Follow version at which the followers were read; the same for all slices of a post.
    pub version: FollowVersion,
    /// The chunks of the slice.
    pub chunks: Vec<ChunkPlan>,
    /// Last follower of the slice: the next slice starts after it. `None` for the last slice of the post.
    pub next_after: Option<UserKey>,
}

/// Outcome of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All recipients are delivered.
    Delivered {
        /// Number of recipients.
        count: u32,
    },
    /// Recipients by state. A recipient in none of the sets is pending. The sets do not overlap.
    Mixed {
        /// Delivered.
        delivered: Recipients,
        /// Not sent on purpose: push disabled, author muted, no device, post deleted.
        suppressed: Recipients,
        /// Not sent because the TTL of the post had passed.
        expired: Recipients,
        /// Marked dead: only a redrive delivers them.
        dead: Recipients,
        /// Pending recipients of whom some devices are already delivered.
        partial: Vec<PartialDelivery>,
    },
}

/// Number of settled recipients of a chunk, by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SettledCounts {
    /// Delivered recipients.
    pub delivered: u32,
    /// Suppressed recipients.
    pub suppressed: u32,
    /// Expired recipients.
    pub expired: u32,
    /// Dead recipients.
    pub dead: u32,
}

impl Outcome {
    /// Number of settled recipients, by state.
    pub fn counts(&self) -> SettledCounts {
        match self {
            Self::Delivered { count } => SettledCounts {
                delivered: *count,
                ..SettledCounts::default()
            },
            Self::Mixed {
                delivered,
                suppressed,
                expired,
                dead,
                ..
            } => SettledCounts {
                delivered: delivered.len(),
                suppressed: suppressed.len(),
                expired: expired.len(),
                dead: dead.len(),
            },
        }
    }
}

/// A recipient who is delivered on some devices and pending on others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialDelivery {
    /// The recipient.
    pub user: UserKey,
    /// Devices whose provider accepted the push. No more attempts are made for them.
    pub done: Vec<DeviceId>,
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
}

/// Result of marking a chunk dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkedDead {
    /// All dead recipients of the chunk, since none is pending any more. A redrive delivers to
    /// them.
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

/// Number of deliveries of a post on one channel, by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChannelCounts {
    /// Planned deliveries.
    pub targeted: u64,
    /// Delivered.
    pub delivered: u64,
    /// Not sent on purpose.
    pub suppressed: u64,
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
    /// recorded one keeps the revision.
    ///
    /// [`Conflict`](crate::ErrorKind::Conflict) if the chunk is at another revision than expected,
    /// [`Invalid`](crate::ErrorKind::Invalid) for [`ExpectedRevision::Any`] with an outcome other than
    /// [`Outcome::Delivered`].
    async fn settle(&self, settlement: &Settlement) -> Result<u64>;

    /// Marks the pending recipients of a chunk dead, except those with a delivered device, who are marked delivered.
    /// Durable on return. Marking the chunk again changes nothing. `None` if no such chunk is planned.
    async fn mark_dead(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
        at: Timestamp,
    ) -> Result<Option<MarkedDead>>;

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

    /// Lists up to `limit` recipients greater than `after` that are in `state` (`None`: any), ascending, with their
    /// states.
    async fn recipients(
        &self,
        post: PostId,
        channel: Channel,
        state: Option<DeliveryState>,
        after: Option<UserKey>,
        limit: usize,
    ) -> Result<Vec<(UserKey, DeliveryState)>>;

    /// Lists up to `limit` posts greater than `after` that have rows in the ledger, ascending.
    async fn posts(&self, after: Option<PostId>, limit: usize) -> Result<Vec<PostId>>;

    /// Reads all rows of a post from one snapshot; `None` if there are none.
    async fn audit(&self, post: PostId) -> Result<Option<PostPlan>>;
}
