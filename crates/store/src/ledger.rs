//! What was planned for a post and what became of it.

use async_trait::async_trait;
use herald_model::{Channel, ChunkId, DeliveryState, DeviceId, PostId, Recipients, UserKey, time::Timestamp};

use crate::{Durable, Result};

/// One chunk that fan-out is about to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkPlan {
    /// For which channel.
    pub channel: Channel,
    /// For whom. The chunk's id is that of its recipients.
    pub recipients: Recipients,
}

/// What one slice of a post's fan-out is about to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePlan {
    /// The post.
    pub post: PostId,
    /// The slice, from 0.
    pub slice: u32,
    /// Its chunks.
    pub chunks: Vec<ChunkPlan>,
    /// Whether it is the last one.
    pub last: bool,
}

/// What became of one chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All of its recipients were delivered.
    Delivered {
        /// How many these are.
        count: u32,
    },
    /// Some of this, some of that. Recipients in none of the sets are pending.
    Mixed {
        /// Reached.
        delivered: Recipients,
        /// Left out on purpose.
        suppressed: Recipients,
        /// Too late.
        expired: Recipients,
        /// Given up.
        dead: Recipients,
        /// Pending, but with some devices done already.
        partial: Vec<PartialDelivery>,
    },
}

/// Recipients of one chunk that are settled, by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SettledCounts {
    /// Reached.
    pub delivered: u32,
    /// Left out on purpose.
    pub suppressed: u32,
    /// Too late.
    pub expired: u32,
    /// Given up.
    pub dead: u32,
}

impl Outcome {
    /// How many are settled, by state.
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

/// A recipient who is reached on some devices and not yet on others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialDelivery {
    /// Who.
    pub user: UserKey,
    /// The devices whose provider accepted the push: they need no more tries.
    pub done: Vec<DeviceId>,
}

/// What is recorded of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedOutcome {
    /// How often that has changed, from 1. Names this state of the chunk: each revision is recorded once.
    pub revision: u64,
    /// What became of it.
    pub outcome: Outcome,
}

/// What a settlement is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectedRevision {
    /// This revision was read, and the settlement goes on from it; 0: nothing was recorded. When another one is
    /// recorded meanwhile it is refused as [`Conflict`](crate::ErrorKind::Conflict), so that a worker that was stopped
    /// and wakes up late can't take back what another has recorded.
    Revision(u64),
    /// Nothing was read: whatever is recorded, it is right. Only for [`Outcome::Delivered`], which nothing can follow.
    Any,
}

/// What became of one chunk, to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// The post.
    pub post: PostId,
    /// The channel.
    pub channel: Channel,
    /// The chunk.
    pub chunk: ChunkId,
    /// What it goes on from.
    pub base: ExpectedRevision,
    /// All that is known of it; it replaces what was recorded before.
    pub outcome: Outcome,
    /// When.
    pub at: Timestamp,
}

/// A chunk that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkedDead {
    /// All of its recipients that are dead now: those whom a redrive has to reach.
    pub owed: Recipients,
    /// The chunk's revision now.
    pub revision: u64,
    /// How many of the chunk are settled now, by state.
    pub counts: SettledCounts,
}

/// All that is recorded of a post, for whoever checks it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PostPlan {
    /// The planned slices, ascending.
    pub slices: Vec<PlannedSlice>,
    /// The planned chunks, with what became of them.
    pub chunks: Vec<ChunkState>,
    /// Chunks of which something is recorded and that no slice has planned: there should be none.
    pub unplanned: Vec<(Channel, ChunkId, RecordedOutcome)>,
    /// Whose timelines backfills have put the post on, or were about to.
    pub backfilled: Vec<Recipients>,
}

/// A slice that was planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedSlice {
    /// Which, from 0.
    pub index: u32,
    /// Whether it is the last one.
    pub last: bool,
}

/// A planned chunk and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkState {
    /// Its channel.
    pub channel: Channel,
    /// Its id.
    pub chunk: ChunkId,
    /// For whom it is.
    pub recipients: Recipients,
    /// What is recorded of it; `None`: all are pending.
    pub recorded: Option<RecordedOutcome>,
}

/// A post's deliveries on one channel in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChannelCounts {
    /// Planned.
    pub targeted: u64,
    /// Reached.
    pub delivered: u64,
    /// Left out on purpose.
    pub suppressed: u64,
    /// Too late.
    pub expired: u64,
    /// Planned, not settled.
    pub pending: u64,
    /// Given up.
    pub dead: u64,
    /// When the first was delivered.
    pub first_delivered_at: Option<Timestamp>,
    /// When the last was delivered.
    pub last_delivered_at: Option<Timestamp>,
}

/// A post's deliveries in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PostCounts {
    /// Whether every slice is planned.
    pub planned: bool,
    /// The timeline.
    pub timeline: ChannelCounts,
    /// The push.
    pub push: ChannelCounts,
}

/// The delivery ledger: for each post and channel who was targeted and what became of them.
///
/// *Invariant:* plans are written before their chunks are published and durable before the post is acknowledged, and
/// outcomes are durable after their effect and before the message is acknowledged, so `targeted = delivered + suppressed + expired + pending + dead` at every moment.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Records what a slice will publish. Planning the same slice again changes nothing. On return it can be read and
    /// outlives this process; it is durable once what is returned resolves. Nothing recorded later is durable before it.
    async fn plan(&self, plan: &SlicePlan) -> Result<Durable>;

    /// Records what became of a chunk, and answers with the chunk's revision now. Recording what is recorded already
    /// makes no new revision.
    async fn settle(&self, settlement: &Settlement) -> Result<u64>;

    /// Gives up a chunk: makes all of its pending recipients dead, but those who were reached on some device, who are
    /// delivered. Burying it again changes nothing. `None` when no such chunk is planned.
    async fn mark_dead(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
        at: Timestamp,
    ) -> Result<Option<MarkedDead>>;

    /// Records that a backfill is about to put these posts on these timelines; before it does. Again: nothing.
    async fn note_backfill(&self, posts: &[PostId], recipients: &Recipients) -> Result<()>;

    /// What is recorded of a chunk.
    async fn outcome(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
    ) -> Result<Option<RecordedOutcome>>;

    /// Counts a post's deliveries; `None` when nothing was planned yet.
    async fn counts(&self, post: PostId) -> Result<Option<PostCounts>>;

    /// Lists up to `limit` recipients greater than `after`, ascending, each with its state; `state` of `None`: any.
    async fn recipients(
        &self,
        post: PostId,
        channel: Channel,
        state: Option<DeliveryState>,
        after: Option<UserKey>,
        limit: usize,
    ) -> Result<Vec<(UserKey, DeliveryState)>>;

    /// Lists up to `limit` posts greater than `after` of which anything is recorded, ascending.
    async fn posts(&self, after: Option<PostId>, limit: usize) -> Result<Vec<PostId>>;

    /// All that is recorded of a post, at one moment; `None` when nothing is.
    async fn audit(&self, post: PostId) -> Result<Option<PostPlan>>;
}
