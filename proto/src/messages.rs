//! How messages about deliveries are made, and the ids that they are published with: made of what is in them, so that only
//! the same message is taken for the same.

use herald_model::{PostId, Recipients, UserKey, time::Micros};

use crate::{
    mesh_v1::{DeliveriesSettled, PushChunk, TimelineChunk},
    v1::Channel,
};

impl TimelineChunk {
    /// A post for these timelines.
    pub fn new(post: PostId, author: UserKey, accepted_at: Micros, recipients: &Recipients) -> Self {
        Self {
            post_id: post.0,
            author_key: author.0,
            accepted_at_us: accepted_at.0,
            chunk_id: recipients.chunk_id().0,
            recipients: recipients.as_bytes().clone(),
            recipient_count: recipients.len(),
        }
    }

    /// The id to publish it with: the same for all who publish the same chunk.
    pub fn message_id(&self) -> String {
        chunk(self.post_id, Channel::Timeline, self.chunk_id)
    }
}

impl PushChunk {
    /// A post for the devices of these people, worth sending until `expires_at`.
    pub fn new(
        post: PostId,
        author: UserKey,
        accepted_at: Micros,
        expires_at: Micros,
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
        }
    }

    /// The id to publish it with: the same for all who publish the same chunk.
    pub fn message_id(&self) -> String {
        chunk(self.post_id, Channel::Push, self.chunk_id)
    }
}

impl DeliveriesSettled {
    /// The id to publish it with: the same for all who tell of the same revision of a chunk.
    pub fn message_id(&self) -> String {
        format!(
            "{}/{}",
            chunk(self.post_id, self.channel(), self.chunk_id),
            self.revision
        )
    }
}

fn chunk(post_id: u64, channel: Channel, chunk_id: u64) -> String {
    let channel = match channel {
        Channel::Unspecified => "unspecified",
        Channel::Timeline => "timeline",
        Channel::Push => "push",
    };
    format!("{post_id}/{channel}/{chunk_id:016x}")
}
