//! Timelines: the posts that were delivered to each user.

use async_trait::async_trait;
use herald_model::{PostId, Recipients, UserKey};

use crate::{Durable, Result};

/// The posts that were delivered to each follower.
///
/// A timeline shows a bounded number of the newest posts, for a bounded time (800 posts and 30 days by default); older
/// posts are evicted.
///
/// *Invariant:* the key is the pair (follower, post), so delivering a pair again changes nothing.
#[async_trait]
pub trait Timelines: Send + Sync {
    /// Adds a post to the timelines of its recipients. On return [`newest`](Self::newest) shows it; it is durable when
    /// the returned future resolves. Not atomic: a read during the call can see the post on some timelines only. Waits
    /// while too many deliveries are not written yet (back-pressure).
    ///
    /// [`LimitExceeded`](crate::ErrorKind::LimitExceeded) for a post id greater than 2^56 − 1.
    async fn deliver(&self, post: PostId, recipients: Recipients) -> Result<Durable>;

    /// Lists up to `limit` posts of a timeline that are less than `before`, newest (greatest id) first.
    async fn newest(&self, user: UserKey, before: Option<PostId>, limit: usize) -> Result<Vec<PostId>>;

    /// Lists up to `limit` users greater than `after` that have durable deliveries, ascending, each with all its posts
    /// in ascending order without repeats. For audits: it reads durable data only.
    async fn scan(&self, after: Option<UserKey>, limit: usize) -> Result<Vec<(UserKey, Vec<PostId>)>>;
}
