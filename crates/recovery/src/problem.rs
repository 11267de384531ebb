//! What can be wrong with the streams.

use std::fmt;

use herald_mesh::streams;
use herald_model::{PostId, time::Timestamp};

/// What is wrong with a stream, or between the streams and the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// The stream doesn't exist. Messages that are published to it are refused.
    Missing {
        /// The stream.
        stream: String,
    },
    /// The stream ends before a message that was seen in it: it lost its newest messages, or it is another stream.
    LostTail {
        /// The stream.
        stream: String,
        /// Its last sequence.
        last: u64,
        /// The greatest sequence that was seen in it.
        known: u64,
    },
    /// The stream lost its newest messages, and new ones have got their sequences.
    Replaced {
        /// The stream.
        stream: String,
        /// A sequence with another message than the one that was seen.
        sequence: u64,
        /// When the message that was seen had been stored.
        seen_at: Timestamp,
        /// When the message that the stream has was stored.
        stored_at: Timestamp,
    },
    /// POSTS lost posts that are in the store, and new ones have got their ids.
    ReusedId {
        /// An id that one post has in POSTS, and another one in the store.
        post: PostId,
    },
    /// The archive has acknowledged a post that the store doesn't have: the store is older than the streams.
    StoreOlder {
        /// The newest post that the archive has acknowledged.
        acknowledged: PostId,
        /// The newest post in the store.
        archived: Option<PostId>,
    },
}

impl Problem {
    /// The stream; `None` if all of them are concerned.
    pub fn stream(&self) -> Option<&str> {
        match self {
            Self::Missing { stream } | Self::LostTail { stream, .. } | Self::Replaced { stream, .. } => {
                Some(stream)
            }
            Self::ReusedId { .. } => Some(streams::POSTS),
            Self::StoreOlder { .. } => None,
        }
    }

    /// The kind of problem, for programs: it never changes.
    pub fn id(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "stream-missing",
            Self::LostTail { .. } => "stream-lost-tail",
            Self::Replaced { .. } => "stream-replaced",
            Self::ReusedId { .. } => "post-id-reused",
            Self::StoreOlder { .. } => "store-older",
        }
    }

    /// Whether making the stream again is all there is to do: it is missing, and ids of posts don't come from it.
    pub fn can_be_made_again(&self) -> bool {
        matches!(self, Self::Missing { stream } if stream != streams::POSTS)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { stream } => write!(f, "stream {stream} is missing"),
            Self::LostTail { stream, last, known } => write!(
                f,
                "stream {stream} lost its newest messages: it ends at {last}, and message {known} was seen in it"
            ),
            Self::Replaced {
                stream,
                sequence,
                seen_at,
                stored_at,
            } => write!(
                f,
                "stream {stream} lost its newest messages and used their sequences again: message {sequence} was stored \
                 at {} µs since 1970, and another one with this sequence at {} µs",
                seen_at.0, stored_at.0
            ),
            Self::ReusedId { post } => write!(
                f,
                "stream POSTS lost its newest messages and used their sequences again: message {post} is another one than \
                 post {post} of the store"
            ),
            Self::StoreOlder {
                acknowledged,
                archived,
            } => {
                write!(
                    f,
                    "the store is older than the streams: post {acknowledged} was archived, and the newest post in the \
                     store is "
                )?;
                match archived {
                    Some(post) => write!(f, "{post}"),
                    None => f.write_str("none"),
                }
            }
        }
    }
}

/// Everything that is wrong; at least one problem.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            problem.fmt(f)?;
        }
        f.write_str(
            ". Nothing was changed. If these are the NATS server and the store that belong together, stop all processes of \
             Herald and run `herald recover`: it tells what is lost and goes on with new sequences",
        )
    }
}
