//! Posts.

use std::{collections::BTreeMap, time::Duration};

use crate::{Lane, PostId, UserId, UserKey, time::Timestamp};

/// An accepted post. Of a deleted post the store removes, after a time, all but the id, the key of the author, the lane
/// and the times: see [`is_erased`](Self::is_erased).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    /// The id: its sequence in the POSTS stream.
    pub id: PostId,
    /// Key of the author.
    pub author: UserKey,
    /// Id of the author; [`ERASED_AUTHOR`](Self::ERASED_AUTHOR) in an erased post.
    pub author_id: UserId,
    /// Request id of the client, or a generated one; empty in an erased post.
    pub request_id: String,
    /// The text.
    pub text: String,
    /// Links, in the order of the request.
    pub links: Vec<String>,
    /// Media URLs, in the order of the request.
    pub media_urls: Vec<String>,
    /// The lane.
    pub lane: Lane,
    /// Time of acceptance.
    pub accepted_at: Timestamp,
    /// TTL of pushes, from `accepted_at`. Later pushes expire.
    pub push_ttl: Duration,
    /// Content of the pushes besides the text.
    pub push: PushContent,
    /// Time of the deletion; `None` if the post is not deleted.
    pub deleted_at: Option<Timestamp>,
}

impl Post {
    /// The id of the author in an erased post. A user can have this id too: don't look up the author by it.
    pub const ERASED_AUTHOR: &str = "erased";

    /// Whether the text and all else that the author wrote was removed.
    pub fn is_erased(&self) -> bool {
        // Each accepted post has a request id.
        self.request_id.is_empty() && self.deleted_at.is_some()
    }
}

/// What an author adds to the pushes of a post. The default adds nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PushContent {
    /// Title; empty without one.
    pub title: String,
    /// A push replaces an unseen one with the same author and collapse key; empty: it replaces none.
    pub collapse_key: String,
    /// Data for the application on the device.
    pub data: BTreeMap<String, String>,
}

/// A message about one post, whose spans have the attribute `post_id`.
pub trait PostScoped {
    /// The id of the post; `None` if the message is about several posts, or if its post has no id yet.
    fn post_id(&self) -> Option<u64>;
}
