//! What users read.

use async_trait::async_trait;
use herald_model::{PostId, Recipients, UserKey};

use crate::{Durable, Result};

/// Timelines: for each follower, the posts delivered.
///
/// *Invariant:* the pair (follower, post) is the key: delivering it twice is delivering it once.
#[async_trait]
pub trait Timelines: Send + Sync {
    /// Puts a post on timelines. On return it is readable by [`newest`](Self::newest); when the returned future
    /// resolves it is durable. Waits when too much is on its way to the disk.
    async fn deliver(&self, post: PostId, recipients: Recipients) -> Result<Durable>;

    /// Up to `limit` posts on a timeline, newest (greatest id) first, only those less than `before`.
    async fn newest(&self, user: UserKey, before: Option<PostId>, limit: usize) -> Result<Vec<PostId>>;

    /// For audits: up to `limit` users greater than `after` who have a durable timeline, ascending, each with all its
    /// posts, ascending and without repeats.
    async fn scan(&self, after: Option<UserKey>, limit: usize) -> Result<Vec<(UserKey, Vec<PostId>)>>;
}
