//! A post, as the mesh and the stores hold it.

use std::time::Duration;

use crate::{FollowVersion, Lane, PostId, UserId, UserKey, time::Timestamp};

/// An accepted post.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    /// Its id: the sequence number in POSTS.
    pub id: PostId,
    /// Who wrote it.
    pub author: UserKey,
    /// Who wrote it, in the caller's words.
    pub author_id: UserId,
    /// The caller's request id, or the one made for it.
    pub request_id: String,
    /// The text.
    pub text: String,
    /// Links, in the order given.
    pub links: Vec<String>,
    /// Media, in the order given.
    pub media_urls: Vec<String>,
    /// The lane it travels in.
    pub lane: Lane,
    /// Who is a follower of this post: the author's followers as of this version.
    pub follow_version: FollowVersion,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// How long after that a push of it is worth sending.
    pub push_ttl: Duration,
    /// When it was deleted, if it was.
    pub deleted_at: Option<Timestamp>,
}
