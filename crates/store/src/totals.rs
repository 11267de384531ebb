//! Counts by post and hour.

use std::ops::AddAssign;

use async_trait::async_trait;
use herald_model::{Channel, ChunkId, PostId, UserKey};

use crate::{Result, SettledCounts};

/// Counts of what happened, or by how much they change: a redrive takes deaths back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Posts accepted.
    pub posts: i64,
    /// Posts deleted.
    pub deleted_posts: i64,
    /// Timeline deliveries.
    pub timeline_delivered: i64,
    /// Timeline deliveries given up.
    pub timeline_dead: i64,
    /// Pushes accepted by a provider.
    pub push_delivered: i64,
    /// Pushes left out on purpose.
    pub push_suppressed: i64,
    /// Pushes that were too late.
    pub push_expired: i64,
    /// Pushes given up.
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
    /// Its author.
    pub author: UserKey,
    /// What happened.
    pub counts: Counts,
    /// The longest time from acceptance to a timeline, milliseconds.
    pub timeline_latency_ms_max: u64,
    /// The longest time from acceptance to a push, milliseconds.
    pub push_latency_ms_max: u64,
}

/// A chunk, as its events name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkRef {
    /// The post.
    pub post: PostId,
    /// The channel.
    pub channel: Channel,
    /// The chunk.
    pub chunk: ChunkId,
}

/// What of a chunk is counted: all that its events up to a revision tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// The revision.
    pub revision: u64,
    /// The recipients that are settled in it.
    pub counts: SettledCounts,
}

/// What one file of analytics adds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TotalsBatch {
    /// The stream the messages came from.
    pub stream: String,
    /// The sequence numbers of those of which it has all rows: from now on [`Totals::seen`].
    pub sequences: Vec<u64>,
    /// The file that holds them; its intent is cleared.
    pub file: String,
    /// What to add, by post (latencies: the greater one stays).
    pub posts: Vec<(PostId, PostTotals)>,
    /// What to add, by hour (hours since 1970).
    pub hours: Vec<(u32, Counts)>,
    /// What of these chunks is counted with this file.
    pub chunks: Vec<(ChunkRef, Counted)>,
}

/// Counts by post and hour, each message counted once, and each revision of a chunk.
///
/// A file is announced with [`intend`](Self::intend) before it is written, and its messages are counted and marked as seen
/// in one atomic [`commit`](Self::commit) after. What was announced and never committed is left over from a crash: the
/// file is deleted at the next start, because its messages come again.
#[async_trait]
pub trait Totals: Send + Sync {
    /// Which of these messages were committed already.
    async fn seen(&self, stream: &str, sequences: &[u64]) -> Result<Vec<bool>>;

    /// What of these chunks is counted already, in their order. It is known as long as what became of their posts is.
    async fn counted(&self, chunks: &[ChunkRef]) -> Result<Vec<Counted>>;

    /// Announces a file.
    async fn intend(&self, file: &str) -> Result<()>;

    /// Files that were announced and not committed.
    async fn intended(&self) -> Result<Vec<String>>;

    /// Forgets an announced file, after it was deleted.
    async fn abandon(&self, file: &str) -> Result<()>;

    /// Adds counts, marks messages as seen and clears the file's intent, all or nothing. When all of its messages were
    /// committed before, nothing changes and the intent stays; when some were, it is refused as
    /// [`Corrupt`](crate::ErrorKind::Corrupt). When a chunk is counted up to its revision or a later one already, it is
    /// refused as [`Conflict`](crate::ErrorKind::Conflict).
    async fn commit(&self, batch: &TotalsBatch) -> Result<()>;

    /// One post's totals.
    async fn of_post(&self, post: PostId) -> Result<Option<PostTotals>>;

    /// Totals of the hours from `start` up to but not including `end` (hours since 1970), ascending.
    async fn of_hours(&self, start: u32, end: u32) -> Result<Vec<(u32, Counts)>>;
}
