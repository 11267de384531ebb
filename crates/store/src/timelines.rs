//! Timelines: the posts that were delivered to each user.

use async_trait::async_trait;
use herald_model::{PostId, Recipients, UserKey};

use crate::{Durable, Result, SuppressedReason};

/// A post that was added to timelines.
pub struct Delivered {
    /// The recipients whose timelines don't get the post, by reason: [`Inactive`](SuppressedReason::Inactive) or
    /// [`Drowning`](SuppressedReason::Drowning). The sets don't overlap; none is empty.
    pub suppressed: Vec<(SuppressedReason, Recipients)>,
    /// Resolves when the post is durable on the timelines of all other recipients.
    pub durable: Durable,
    /// Number of losses of timelines that were recorded before the write: pass it to
    /// [`is_intact`](Timelines::is_intact).
    pub losses: u64,
}

/// A page of a timeline.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TimelinePage {
    /// Posts, newest (greatest id) first.
    pub posts: Vec<PostId>,
    /// Whether posts can be missing because the timeline is being rebuilt. Read it again later.
    pub rebuilding: bool,
}

/// All entries of a timeline, for audits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TimelineEntries {
    /// The posts in ascending order, without repeats.
    pub posts: Vec<PostId>,
    /// Whether the timeline has every delivered post. `false` for one that is rebuilt when its user reads it, and for
    /// one that was erased.
    pub complete: bool,
}

/// What a rebuild of timelines wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Number of timelines that are complete now and were not before.
    pub timelines: u64,
    /// Number of entries that were missing and are written.
    pub entries: u64,
}

/// The posts that were delivered to each follower.
///
/// A timeline shows a bounded number of the newest posts, for a bounded time (800 posts and 30 days by default); older
/// posts are evicted.
///
/// *Invariant:* the key is the pair (follower, post), so delivering a pair again changes nothing.
#[async_trait]
pub trait Timelines: Send + Sync {
    /// Adds a post to the timelines of its recipients. On return [`newest`](Self::newest) shows it; it is durable when
    /// [`Delivered::durable`] resolves. Not atomic: a read during the call can see the post on some timelines only.
    /// Waits while too many deliveries are not written yet (back-pressure).
    ///
    /// [`LimitExceeded`](crate::ErrorKind::LimitExceeded) for a post id greater than 2^56 − 1.
    async fn deliver(&self, post: PostId, recipients: Recipients) -> Result<Delivered>;

    /// Whether no loss of timelines was recorded since a delivery; `losses` is its [`Delivered::losses`]. Call it after
    /// the outcome of the delivery is in the ledger, and deliver again if it returns `false`: the repair of a loss
    /// delivers again what the ledger has, so it misses what is recorded in the ledger later. An engine whose timelines
    /// are records, not a view, loses some only while they are rebuilt.
    async fn is_intact(&self, losses: u64) -> Result<bool>;

    /// Lists up to `limit` posts of a timeline that are less than `before`, newest (greatest id) first. Counts as a
    /// read by the user: an inactive user becomes active, and an incomplete timeline is rebuilt.
    async fn newest(&self, user: UserKey, before: Option<PostId>, limit: usize) -> Result<TimelinePage>;

    /// Reads the whole timelines of users. For audits: it reads durable data only, and is no read by the user.
    async fn read(&self, users: &[UserKey]) -> Result<Vec<TimelineEntries>>;

    /// Writes what is missing on the timelines of users. Durable on return. An engine whose timelines are records, not a
    /// view, rebuilds all of them if one of these users' can't be read, and nothing else.
    async fn rebuild(&self, users: &[UserKey]) -> Result<Rebuilt>;

    /// Removes the entries of a user's timeline, for good: what is delivered or rebuilt later is not shown, and
    /// [`TimelineEntries::complete`] is `false` from now on, so that no audit misses an entry. Durable on return. Other
    /// processes may show an entry that is delivered now until they sample the erased users. Returns the number of
    /// entries that were removed; 0 if it is repeated.
    async fn erase(&self, user: UserKey) -> Result<u64>;
}
