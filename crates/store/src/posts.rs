//! Posts and the requests that created them.

use async_trait::async_trait;
use herald_model::{Post, PostId, UserKey, time::Timestamp};

use crate::Result;

/// An event of the POSTS stream, as the archive consumer reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "nearly all entries are posts")]
pub enum Archived {
    /// A post was accepted.
    Created(Post),
    /// A post was deleted. Redelivery can bring this event before the post's `Created`.
    Deleted {
        /// The deleted post.
        post: PostId,
        /// Time of the deletion.
        at: Timestamp,
    },
}

/// The archive of posts.
#[async_trait]
pub trait Posts: Send + Sync {
    /// Stores posts with their request ids, and deletions. All or nothing, durable on return.
    ///
    /// A post that is already stored, or was removed because it was past its retention, is not changed. The first
    /// deletion of a post counts; it may be stored before the post. If posts of one author with the same request id
    /// were accepted within the retention of request ids (24 hours by default), the request id stands for the one with
    /// the smallest id.
    async fn archive(&self, entries: &[Archived]) -> Result<()>;

    /// Reads posts, including deleted ones (see [`Post::deleted_at`]); `None` for a post that is not archived.
    async fn get(&self, posts: &[PostId]) -> Result<Vec<Option<Post>>>;

    /// Lists up to `limit` posts of an author that are not deleted and not greater than `up_to`, newest (greatest id)
    /// first.
    async fn newest_by_author(&self, author: UserKey, up_to: PostId, limit: usize) -> Result<Vec<PostId>>;

    /// Reads the post that a request created; `None` if there is none or it is older than the retention of request ids.
    async fn find_by_request(&self, author: UserKey, request_id: &str) -> Result<Option<PostId>>;

    /// Checks whether a new post may be accepted. [`Full`](crate::ErrorKind::Full) while free space is low: the rest is
    /// reserved for posts that are already accepted. The gateway calls it for each post: an engine answers at once,
    /// from a sample of up to 10 s ago, and an engine that can't be reached answers `Ok`.
    async fn capacity(&self) -> Result<()>;

    /// Reads the greatest post id ever archived; `None` if there is none. Retention never removes this post. A POSTS
    /// stream whose last sequence is smaller belongs to another store.
    async fn last(&self) -> Result<Option<PostId>>;

    /// Finds the first post that was accepted at `moment` or later; one past the last post if all are older. If clocks
    /// were corrected, a post near it. A binary search of about 40 reads.
    async fn first_since(&self, moment: Timestamp) -> Result<PostId>;

    /// Lists up to `limit` posts greater than `after`, ascending, including deleted ones.
    async fn list(&self, after: Option<PostId>, limit: usize) -> Result<Vec<PostId>>;

    /// Lists up to `limit` posts of an author that are greater than `after` and whose text is held, ascending,
    /// including deleted ones.
    async fn of_author(&self, author: UserKey, after: Option<PostId>, limit: usize) -> Result<Vec<PostId>>;

    /// Removes what the author wrote, the author's id and the request id from those posts that are deleted. The id of
    /// the post, the key of the author, the lane, and the times of acceptance and deletion stay ([`Post::is_erased`]).
    /// A post that is not deleted stays as it is. Durable on return. Not atomic. Returns the number of posts that were
    /// changed.
    async fn erase_texts(&self, posts: &[PostId]) -> Result<u64>;

    /// Does the same to those of these posts that can't be decoded and are of this author, and deletes them at `at`
    /// unless they are deleted. Posts of other authors stay as they are. The lanes are lost; the time of acceptance
    /// too, in an engine that has it nowhere else: it is that of an earlier post then. Durable on return. Returns the
    /// posts that were changed, ascending.
    async fn erase_damaged(&self, author: UserKey, posts: &[PostId], at: Timestamp) -> Result<Vec<PostId>>;
}
