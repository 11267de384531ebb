//! What was planned for a post and what became of it.

use async_trait::async_trait;
use herald_model::{Channel, ChunkId, DeliveryState, DeviceId, PostId, Recipients, UserKey, time::Micros};

use crate::Result;

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
        partly: Vec<Partly>,
        /// How many of these were announced by events before this was recorded. The rest is owed one more event, and
        /// whoever reads this can make the very same one again.
        announced: SettledCounts,
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

/// A recipient who is reached on some devices and not yet on others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partly {
    /// Who.
    pub user: UserKey,
    /// The devices whose provider accepted the push: they need no more tries.
    pub done: Vec<DeviceId>,
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
    /// All that is known of it; it replaces what was recorded before.
    pub outcome: Outcome,
    /// When.
    pub at: Micros,
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
    pub first_delivered_at: Option<Micros>,
    /// When the last was delivered.
    pub last_delivered_at: Option<Micros>,
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
/// *Invariant:* plans are written before their chunks are published, and outcomes after their effect is durable and
/// before the message is acknowledged, so `targeted = delivered + suppressed + expired + pending + dead` at every moment.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Records what a slice will publish. Planning the same slice again changes nothing.
    async fn plan(&self, plan: &SlicePlan) -> Result<()>;

    /// Records what became of a chunk.
    async fn settle(&self, settlement: &Settlement) -> Result<()>;

    /// What is recorded of a chunk.
    async fn outcome(&self, post: PostId, channel: Channel, chunk: ChunkId) -> Result<Option<Outcome>>;

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
}
