//! Delivery counts by post and by hour.

use std::ops::AddAssign;

use async_trait::async_trait;
use herald_model::{Channel, ChunkId, PostId, UserKey};

use crate::{Fence, Result, SettledCounts};

/// Counts, or a change of counts. A change can be negative: a redrive moves recipients from dead to delivered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Posts accepted.
    pub posts: i64,
    /// Posts deleted.
    pub deleted_posts: i64,
    /// Timeline deliveries.
    pub timeline_delivered: i64,
    /// Timeline deliveries marked dead.
    pub timeline_dead: i64,
    /// Pushes accepted by a provider.
    pub push_delivered: i64,
    /// Pushes not sent on purpose: push disabled, author muted, no device, post deleted.
    pub push_suppressed: i64,
    /// Pushes not sent because the TTL of the post had passed.
    pub push_expired: i64,
    /// Pushes marked dead.
    pub push_dead: i64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.posts += other.posts;
        self.deleted_posts += other.deleted_posts;
        self.timeline_delivered += other.timeline_delivered;
        self.timeline_dead += other.timeline_dead;
        self.push_delivered += other.push_delivered;
        self.push_suppressed += other.push_suppressed;
        self.push_expired += other.push_expired;
        self.push_dead += other.push_dead;
    }
}

/// Totals of one post.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PostTotals {
    /// The author of the post.
    pub author: UserKey,
    /// The counts of the post.
    pub counts: Counts,
    /// Maximum time from acceptance to timeline delivery, milliseconds.
    pub timeline_latency_ms_max: u64,
    /// Maximum time from acceptance to push delivery, milliseconds.
    pub push_latency_ms_max: u64,
}

/// The key of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkRef {
    /// The post of the chunk.
    pub post: PostId,
    /// The channel of the chunk.
    pub channel: Channel,
    /// The id of the chunk.
    pub chunk: ChunkId,
}

/// What the totals include of a chunk. The default (revision 0) includes nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// The greatest revision that is included.
    pub revision: u64,
    /// The settled recipients at that revision.
    pub counts: SettledCounts,
}

/// The messages of one analytics file, counted together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TotalsBatch {
    /// The stream of the messages.
    pub stream: String,
    /// Sequences of the messages whose rows are all in the file. [`Totals::seen`] returns true for them from now on.
    pub sequences: Vec<u64>,
    /// Name of the file. Its announcement is cleared.
    pub file: String,
    /// Changes by post: counts are added, the greater latency is kept.
    pub posts: Vec<(PostId, PostTotals)>,
    /// Changes by hour, in hours since 1970 (UTC).
    pub hours: Vec<(u32, Counts)>,
    /// What the totals include of each chunk of the file from now on.
    pub chunks: Vec<(ChunkRef, Counted)>,
}

/// A file that is announced and not committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntendedFile {
    /// Name of the file.
    pub file: String,
    /// The lease of the writer that announced it. An abandoned file has none: the name is empty and the token 0.
    pub owner: Fence,
    /// Whether that lease has ended, or the file is abandoned: it is to be deleted.
    pub orphaned: bool,
}

impl IntendedFile {
    /// The owner of abandoned files. No lease has this token.
    pub(crate) const NO_OWNER: Fence = Fence {
        name: String::new(),
        token: 0,
    };
}

/// Delivery counts by post and by hour. Each message and each revision of a chunk is counted once.
///
/// Protocol: [`intend`](Self::intend) announces a file before it is written; [`commit`](Self::commit) counts its
/// messages and marks them as seen in one atomic write afterwards. Each writer holds a lease of its own
/// ([`Leases`](crate::Leases)). A file whose writer failed is deleted by that writer; one whose writer is gone is
/// *orphaned*, and any other writer deletes it: [`abandon`](Self::abandon) it, delete it, then [`forget`](Self::forget)
/// it. So a file whose deletion is interrupted is found again. Its messages are redelivered.
#[async_trait]
pub trait Totals: Send + Sync {
    /// Reads for each message whether it is committed.
    async fn seen(&self, stream: &str, sequences: &[u64]) -> Result<Vec<bool>>;

    /// Reads what the totals include of each chunk. Retained for twice the ledger's retention.
    async fn counted(&self, chunks: &[ChunkRef]) -> Result<Vec<Counted>>;

    /// Announces a file of the holder of a lease. Durable on return. [`Fenced`](crate::ErrorKind::Fenced) if the lease
    /// has ended or belongs to a newer holder.
    async fn intend(&self, file: &str, owner: &Fence) -> Result<()>;

    /// Lists the files that were announced and neither committed nor forgotten, with their writers.
    async fn intended(&self) -> Result<Vec<IntendedFile>>;

    /// Gives up a file: a later commit of it is refused. Durable on return. Call it before the file is deleted. Returns
    /// whether the file is uncounted; `false` if it is committed, was forgotten, or was never announced.
    async fn abandon(&self, file: &str) -> Result<bool>;

    /// Clears the announcement of an abandoned file. Durable on return. Call it after the file is deleted. Does nothing
    /// if the file is not abandoned.
    async fn forget(&self, file: &str) -> Result<()>;

    /// Adds counts, marks messages as seen and clears the announcement of the file. All or nothing, durable on return.
    ///
    /// If all messages of the file were committed before, nothing changes and the announcement stays.
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if only some of them were.
    /// [`Conflict`](crate::ErrorKind::Conflict) if the totals already include a chunk's revision or a later one.
    /// [`Fenced`](crate::ErrorKind::Fenced) if the file is not announced: another writer has abandoned it.
    async fn commit(&self, batch: &TotalsBatch) -> Result<()>;

    /// Reads the totals of a post; `None` if nothing was counted for it.
    async fn post_totals(&self, post: PostId) -> Result<Option<PostTotals>>;

    /// Lists the totals of the hours from `start` (inclusive) to `end` (exclusive), in hours since 1970 (UTC),
    /// ascending. Hours without counts are absent.
    async fn hour_totals(&self, start: u32, end: u32) -> Result<Vec<(u32, Counts)>>;
}
