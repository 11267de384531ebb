//! The stored form of posts and of their requests.

use std::{collections::BTreeMap, time::Duration};

use herald_model::{Lane, Post, PostId, PushContent, UserId, UserKey, time::Timestamp};
use prost::Message;

use super::corrupt;
use crate::Result;

/// A stored post. It changes only when its text is removed; the deletion has its own row. Tag 8 was the follow version,
/// which the ledger has now.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Row {
    #[prost(uint32, tag = "1")]
    pub(crate) author: u32,
    #[prost(string, tag = "2")]
    author_id: String,
    #[prost(string, tag = "3")]
    pub(crate) request_id: String,
    #[prost(string, tag = "4")]
    text: String,
    #[prost(string, repeated, tag = "5")]
    links: Vec<String>,
    #[prost(string, repeated, tag = "6")]
    media_urls: Vec<String>,
    /// 0 high, 1 normal, 2 low.
    #[prost(uint32, tag = "7")]
    lane: u32,
    #[prost(int64, tag = "9")]
    pub(crate) accepted_at: i64,
    #[prost(uint64, tag = "10")]
    push_ttl_us: u64,
    #[prost(string, tag = "11")]
    push_title: String,
    #[prost(string, tag = "12")]
    push_collapse_key: String,
    #[prost(btree_map = "string, string", tag = "13")]
    push_data: BTreeMap<String, String>,
    /// What the author wrote was removed, with the ids of author and request.
    #[prost(bool, tag = "14")]
    erased: bool,
}

/// The post that a request created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) post: u64,
    pub(crate) at: Timestamp,
}

impl Row {
    pub(crate) fn from_post(post: &Post) -> Self {
        Self {
            author: post.author.0,
            author_id: post.author_id.as_str().into(),
            request_id: post.request_id.clone(),
            text: post.text.clone(),
            links: post.links.clone(),
            media_urls: post.media_urls.clone(),
            lane: match post.lane {
                Lane::High => 0,
                Lane::Normal => 1,
                Lane::Low => 2,
            },
            accepted_at: post.accepted_at.0,
            push_ttl_us: u64::try_from(post.push_ttl.as_micros()).unwrap_or(u64::MAX),
            push_title: post.push.title.clone(),
            push_collapse_key: post.push.collapse_key.clone(),
            push_data: post.push.data.clone(),
            erased: false,
        }
    }

    /// Whether [`erased`](Self::erased) made this row.
    pub(crate) fn is_erased(&self) -> bool {
        self.erased
    }

    /// The row without what the author wrote.
    pub(crate) fn erased(&self) -> Self {
        Self {
            author: self.author,
            // An older process refuses a row without an id.
            author_id: Post::ERASED_AUTHOR.into(),
            lane: self.lane,
            accepted_at: self.accepted_at,
            erased: true,
            ..Self::default()
        }
    }

    /// The row of a post that can't be decoded, without what the author wrote.
    pub(crate) fn erased_damaged(author: UserKey, accepted_at: Timestamp) -> Self {
        Self {
            author: author.0,
            author_id: Post::ERASED_AUTHOR.into(),
            lane: 1,
            accepted_at: accepted_at.0,
            erased: true,
            ..Self::default()
        }
    }

    /// Whether the row of a post can't be decoded.
    pub(crate) fn is_damaged(id: PostId, bytes: &[u8]) -> bool {
        Self::decode(bytes).map_or(true, |row| row.into_post(id, None).is_err())
    }

    pub(crate) fn into_post(self, id: PostId, deleted_at: Option<Timestamp>) -> Result<Post> {
        Ok(Post {
            id,
            author: UserKey(self.author),
            author_id: UserId::from_stored(self.author_id).map_err(|_| corrupt("author of a post"))?,
            request_id: self.request_id,
            text: self.text,
            links: self.links,
            media_urls: self.media_urls,
            lane: *Lane::ALL
                .get(self.lane as usize)
                .ok_or_else(|| corrupt("lane of a post"))?,
            accepted_at: Timestamp(self.accepted_at),
            push_ttl: Duration::from_micros(self.push_ttl_us),
            push: PushContent {
                title: self.push_title,
                collapse_key: self.push_collapse_key,
                data: self.push_data,
            },
            deleted_at,
        })
    }
}

impl Request {
    /// Whether this request replaces the existing one: the smaller post id wins within the retention, else the later
    /// request.
    pub(crate) fn replaces(self, existing: Self, keep: Duration) -> bool {
        let apart = self.at.since(existing.at).max(existing.at.since(self.at));
        if apart <= keep {
            self.post < existing.post
        } else {
            self.at > existing.at
        }
    }

    pub(crate) fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.post.to_be_bytes());
        bytes[8..].copy_from_slice(&self.at.0.to_be_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (post, at) = bytes.split_first_chunk()?;
        Some(Self {
            post: u64::from_be_bytes(*post),
            at: Timestamp(i64::from_be_bytes(at.try_into().ok()?)),
        })
    }
}
