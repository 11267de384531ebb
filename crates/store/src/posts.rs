//! Posts and the requests that made them.

use async_trait::async_trait;
use herald_model::{Post, PostId, UserKey, time::Timestamp};

use crate::Result;

/// What the archive consumer reads from POSTS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Archived {
    /// A post was accepted.
    Created(Post),
    /// A post was deleted. It can come before its `Created` when messages are redelivered.
    Deleted {
        /// Which.
        post: PostId,
        /// When.
        at: Timestamp,
    },
}

/// The archive of posts.
#[async_trait]
pub trait Posts: Send + Sync {
    /// Stores posts, their request ids (kept 24 hours by default) and deletions; durable on return.
    async fn archive(&self, entries: &[Archived]) -> Result<()>;

    /// Reads posts, deleted ones included (see [`Post::deleted_at`]); `None` for one that is not archived.
    async fn get(&self, posts: &[PostId]) -> Result<Vec<Option<Post>>>;

    /// Of an author's posts up to one, the newest that are not deleted, newest first.
    async fn newest_of(&self, author: UserKey, up_to: PostId, limit: usize) -> Result<Vec<PostId>>;

    /// The post that a request made, if it is known and younger than the kept time.
    async fn of_request(&self, author: UserKey, request_id: &str) -> Result<Option<PostId>>;

    /// Whether another post should be accepted: [`Full`](crate::ErrorKind::Full) while the store needs the room that is left
    /// for what was accepted already. Cheap: asked for each post.
    async fn capacity(&self) -> Result<()>;

    /// The greatest post id ever archived. A POSTS stream that ends before it is not the stream of this store.
    async fn last(&self) -> Result<Option<PostId>>;
}
