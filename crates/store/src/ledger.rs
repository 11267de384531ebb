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
#[expect(clippy::large_enum_variant, reason = "few outcomes are in memory at a time")]
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
        /// What is known about single recipients and devices; empty for the timeline.
        details: OutcomeDetails,
    },
}

/// What a push chunk records about its recipients and devices besides their states.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutcomeDetails {
    /// Number of copies of the message that were made for waiting recipients. The newest copy names this generation in
    /// its payload; 0 for the message of fan-out. All waiting recipients belong to this generation.
    pub generation: u32,
    /// End of the pushes' time to live, if some recipients waited. A redrive can extend it.
    pub expires_at: Option<Timestamp>,
    /// Pending recipients with a device that was tried, ascending. A pending recipient without an entry has not
    /// been tried, or was revived by a redrive.
    pub pending: Vec<PendingRecipient>,
    /// Suppressed recipients by reason; the sets don't overlap. No reason is known of a suppressed recipient in none of
    /// them.
    pub suppressed: Vec<(SuppressedReason, Recipients)>,
    /// The last failures of dead and expired recipients, ascending. A recipient without an entry had none, and belongs
    /// to generation 0.
    pub failed: Vec<FailedRecipient>,
}

impl OutcomeDetails {
    /// The waiting devices of a pending recipient.
    pub fn waiting(&self, user: UserKey) -> &[DeviceRetry] {
        self.pending(user).map_or(&[], |recipient| &recipient.waiting)
    }

    /// The entry of a pending recipient.
    pub fn pending(&self, user: UserKey) -> Option<&PendingRecipient> {
        let index = self
            .pending
            .binary_search_by_key(&user, |recipient| recipient.user);
        index.ok().map(|index| &self.pending[index])
    }

    /// The entry of a dead or expired recipient.
    pub fn failed(&self, user: UserKey) -> Option<&FailedRecipient> {
        let index = self
            .failed
            .binary_search_by_key(&user, |recipient| recipient.user);
        index.ok().map(|index| &self.failed[index])
    }

    /// Why a recipient is suppressed, if known.
    pub fn suppressed(&self, user: UserKey) -> Option<SuppressedReason> {
        let mut sets = self.suppressed.iter();
        sets.find(|(_, users)| users.contains(user))
            .map(|(reason, _)| *reason)
    }
}

/// A pending recipient of whom some devices were tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingRecipient {
    /// The recipient.
    pub user: UserKey,
    /// Devices whose provider accepted the push. No more attempts are made for them.
    pub done: Vec<DeviceId>,
    /// Devices whose last attempt failed, each with its next one.
    pub waiting: Vec<DeviceRetry>,
    /// Devices that failed for good. No more attempts are made for them.
    pub failed: Vec<DeviceFailure>,
}

impl PendingRecipient {
    /// A recipient without a device that was tried.
    pub fn new(user: UserKey) -> Self {
        Self {
            user,
            done: Vec::new(),
            waiting: Vec::new(),
            failed: Vec::new(),
        }
    }
}

/// A device that waits for its next attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRetry {
    /// The device.
    pub device: DeviceId,
    /// Failed attempts. A wait that the provider asked for and a closed circuit are not counted.
    pub attempts: u32,
    /// Earliest time of the next attempt.
    pub next_at: Timestamp,
    /// Why the last attempt failed.
    pub failure: PushFailure,
}

/// Why a push to a device failed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PushFailure {
    /// Provider and reason, such as `web_push status 429`; up to [`REASON_BYTES_MAX`](Self::REASON_BYTES_MAX).
    pub reason: String,
    /// Host of the endpoint, with the port unless it is the default; up to [`HOST_BYTES_MAX`](Self::HOST_BYTES_MAX).
    /// Empty if no endpoint was involved.
    pub host: String,
}

impl PushFailure {
    /// Maximum length of a reason, bytes; the rest is cut off.
    pub const REASON_BYTES_MAX: usize = 96;
    /// Maximum length of a host, bytes; the rest is cut off.
    pub const HOST_BYTES_MAX: usize = 96;

    /// A failure with its texts cut to their limits.
    pub fn new(reason: &str, host: &str) -> Self {
        let cut = |text: &str, max| text[..text.floor_char_boundary(max)].to_owned();
        Self {
            reason: cut(reason, Self::REASON_BYTES_MAX),
            host: cut(host, Self::HOST_BYTES_MAX),
        }
    }
}

/// The failure of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFailure {
    /// The device; `None` if the recipient's devices could not be read.
    pub device: Option<DeviceId>,
    /// The failure.
    pub failure: PushFailure,
}

/// A dead or expired recipient with the last failures of its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedRecipient {
    /// The recipient.
    pub user: UserKey,
    /// Generation of the message that settled the recipient. The dead letter of that message covers it.
    pub generation: u32,
    /// The last failure of each device that failed.
    pub failures: Vec<DeviceFailure>,
}

/// Why a recipient is suppressed: nothing was sent, on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum SuppressedReason {
    /// The recipient has no device.
    NoDevice = 1,
    /// The recipient has muted the author.
    Muted = 2,
    /// The recipient has switched pushes off.
    PushOff = 3,
    /// The post was deleted.
    PostDeleted = 4,
    /// All devices of the recipient are gone: their provider said so.
    DeviceGone = 5,
    /// All devices of the recipient are disabled.
    DeviceDisabled = 6,
    /// The recipient has no user id.
    UnknownUser = 7,
}

impl SuppressedReason {
    /// All reasons.
    pub const ALL: [Self; 7] = [
        Self::NoDevice,
        Self::Muted,
        Self::PushOff,
        Self::PostDeleted,
        Self::DeviceGone,
        Self::DeviceDisabled,
        Self::UnknownUser,
    ];
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
    /// recorded one keeps the revision.
    ///
    /// [`Conflict`](crate::ErrorKind::Conflict) if the chunk is at another revision than expected,
    /// [`Invalid`](crate::ErrorKind::Invalid) for [`ExpectedRevision::Any`] with an outcome other than
    /// [`Outcome::Delivered`].
    async fn settle(&self, settlement: &Settlement) -> Result<u64>;

    /// Claims a chunk for one worker: writes its outcome again with a new revision, and returns that revision. Durable
    /// on return. A worker calls it before it sends anything that can't be taken back, and sends nothing when it fails:
    /// the outcome could not be recorded either, or another worker has the chunk.
    ///
    /// [`Conflict`](crate::ErrorKind::Conflict) if the chunk is not at revision `base`; 0 if nothing is recorded. An
    /// engine that several machines share may add a lease: until it ends or the chunk is settled, other workers'
    /// claims are conflicts.
    async fn claim(&self, post: PostId, channel: Channel, chunk: ChunkId, base: u64) -> Result<u64>;

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
