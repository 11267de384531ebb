//! Constructors of delivery messages, and their message ids. An id is derived from the message's content, so that
//! deduplication drops only identical messages.

use herald_model::{PostId, PostScoped, Recipients, UserKey, time::Timestamp};
use xxhash_rust::xxh3::Xxh3;

use crate::{
    mesh_v1::{
        Backfill, DeliveriesSettled, DlqEntry, FanoutSlice, PostCreated, PostDeleted, PushChunk,
        SettledChunk, TimelineChunk,
    },
    v1::Channel,
};

/// Maximum number of chunks in one [`DeliveriesSettled`] event.
pub const EVENT_CHUNKS_MAX: usize = 64;

impl TimelineChunk {
    /// A delivery of a post to these timelines.
    pub fn new(post: PostId, author: UserKey, accepted_at: Timestamp, recipients: &Recipients) -> Self {
        Self {
            post_id: post.0,
            author_key: author.0,
            accepted_at_us: accepted_at.0,
            chunk_id: recipients.chunk_id().0,
            recipients: recipients.as_bytes().clone(),
            recipient_count: recipients.len(),
        }
    }

    /// Message id; equal for every publish of this chunk.
    pub fn message_id(&self) -> String {
        chunk_message_id(self.post_id, Channel::Timeline, self.chunk_id)
    }
}

impl PushChunk {
    /// A delivery of a post to the devices of these recipients. No push is sent after `expires_at`.
    pub fn new(
        post: PostId,
        author: UserKey,
        accepted_at: Timestamp,
        expires_at: Timestamp,
        recipients: &Recipients,
    ) -> Self {
        Self {
            post_id: post.0,
            author_key: author.0,
            accepted_at_us: accepted_at.0,
            chunk_id: recipients.chunk_id().0,
            recipients: recipients.as_bytes().clone(),
            recipient_count: recipients.len(),
            expires_at_us: expires_at.0,
            retry_generation: 0,
        }
    }

    /// Message id; equal for every publish of this chunk.
    pub fn message_id(&self) -> String {
        chunk_message_id(self.post_id, Channel::Push, self.chunk_id)
    }
}

impl SettledChunk {
    fn message_id(&self) -> String {
        format!(
            "{}/{}",
            chunk_message_id(self.post_id, self.channel(), self.chunk_id),
            self.revision
        )
    }
}

impl From<SettledChunk> for DeliveriesSettled {
    fn from(chunk: SettledChunk) -> Self {
        Self { chunks: vec![chunk] }
    }
}

impl DeliveriesSettled {
    /// Message id; equal for events with the same revisions of the same chunks. Empty without a chunk.
    pub fn message_id(&self) -> String {
        let Some((first, others)) = self.chunks.split_first() else {
            return String::new();
        };
        let id = first.message_id();
        if others.is_empty() {
            return id;
        }
        let mut hash = Xxh3::new();
        for other in others {
            hash.update(other.message_id().as_bytes());
            hash.update(b" ");
        }
        format!("{id}+{}/{:016x}", others.len(), hash.digest())
    }
}

fn chunk_message_id(post_id: u64, channel: Channel, chunk_id: u64) -> String {
    let channel = match channel {
        Channel::Unspecified => "unspecified",
        Channel::Timeline => "timeline",
        Channel::Push => "push",
    };
    format!("{post_id}/{channel}/{chunk_id:016x}")
}

impl PostScoped for PostCreated {
    /// A post that is published has no id yet: its id is the sequence of this message.
    fn post_id(&self) -> Option<u64> {
        None
    }
}

impl PostScoped for Backfill {
    /// A backfill has several posts.
    fn post_id(&self) -> Option<u64> {
        None
    }
}

macro_rules! about_one_post {
    ($($message:ty),+) => {$(
        impl PostScoped for $message {
            fn post_id(&self) -> Option<u64> {
                Some(self.post_id)
            }
        }
    )+};
}

about_one_post!(PostDeleted, FanoutSlice, TimelineChunk, PushChunk, DlqEntry);

impl PostScoped for DeliveriesSettled {
    fn post_id(&self) -> Option<u64> {
        let (first, others) = self.chunks.split_first()?;
        let is_one = others.iter().all(|chunk| chunk.post_id == first.post_id);
        is_one.then_some(first.post_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(chunk_id: u64, revision: u64) -> SettledChunk {
        SettledChunk {
            post_id: 7,
            channel: Channel::Timeline.into(),
            chunk_id,
            revision,
            ..SettledChunk::default()
        }
    }

    #[test]
    fn the_id_of_a_single_chunk_event_is_the_id_of_its_chunk() {
        let event = DeliveriesSettled::from(settled(10, 2));
        assert_eq!(event.message_id(), "7/timeline/000000000000000a/2");
    }

    #[test]
    fn only_events_with_the_same_revisions_have_the_same_id() {
        let id = |chunks: &[(u64, u64)]| {
            let chunks = chunks.iter().map(|(chunk, revision)| settled(*chunk, *revision));
            DeliveriesSettled {
                chunks: chunks.collect(),
            }
            .message_id()
        };
        let events: [&[(u64, u64)]; 6] = [
            &[(1, 1)],
            &[(1, 1), (2, 1)],
            &[(1, 1), (2, 2)],
            &[(1, 1), (3, 1)],
            &[(1, 1), (2, 1), (3, 1)],
            &[(1, 1), (3, 1), (2, 1)],
        ];
        for (n, event) in events.iter().enumerate() {
            assert_eq!(id(event), id(event));
            for other in &events[..n] {
                assert_ne!(id(event), id(other));
            }
        }
    }
}
