//! Posts.

use std::{collections::BTreeMap, time::Duration};

use crate::{Lane, PostId, UserId, UserKey, time::Timestamp};

/// An accepted post.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    /// The id: its sequence in the POSTS stream.
    pub id: PostId,
    /// Key of the author.
    pub author: UserKey,
    /// Id of the author.
    pub author_id: UserId,
    /// Request id of the client, or a generated one.
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
