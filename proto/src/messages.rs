//! The id of an event.

use crate::{mesh_v1::DeliveriesSettled, v1::Channel};

impl DeliveriesSettled {
    /// The id to publish it with: the same for all who tell of the same revision of a chunk.
    pub fn message_id(&self) -> String {
        let channel = match self.channel() {
            Channel::Unspecified => "unspecified",
            Channel::Timeline => "timeline",
            Channel::Push => "push",
        };
        format!(
            "{}/{channel}/{:016x}/{}",
            self.post_id, self.chunk_id, self.revision
        )
    }
}
