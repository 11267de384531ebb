//! Deletes the messages that have texts of the user from their streams.

use std::pin::pin;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use herald_mesh::{RawMessage, Subject, streams};
use herald_model::{PostId, UserKey};
use herald_proto::mesh_v1::{DlqEntry, PostCreated};
use herald_store::ErasedCounts;
use prost::Message as _;

use super::Erase;
use crate::Result;

/// Messages deleted at once.
const DELETED_AT_ONCE: usize = 16;

/// A message to delete.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) sequence: u64,
    pub(super) subject: String,
    /// Whether it has the key of the user, not the id alone.
    pub(super) has_key: bool,
}

impl From<&RawMessage> for Found {
    fn from(message: &RawMessage) -> Self {
        Self {
            sequence: message.sequence,
            subject: message.subject.clone(),
            has_key: true,
        }
    }
}

impl Erase<'_> {
    /// The redriven posts of the user in REDRIVE.
    pub(super) async fn find_redriven(&self) -> Result<Vec<Found>> {
        self.find(streams::REDRIVE, |message| {
            let Some((Subject::PostCreated(_), sequence)) = message.original() else {
                return false;
            };
            self.is_post(PostId(sequence), &message.payload)
        })
        .await
    }

    /// The posts of the user in DLQ, whatever became of their dead letters.
    pub(super) async fn find_dead_letters(&self) -> Result<Vec<Found>> {
        // The message id of a post has the id of its author.
        let ids = format!("post/{}/", self.author.id);
        self.find(streams::DLQ, |message| {
            let Ok(entry) = message.decode::<DlqEntry>() else {
                return false;
            };
            let is_post = matches!(Subject::parse(&entry.subject), Some(Subject::PostCreated(_)));
            let has_key = UserKey(entry.author_key) == self.author.key;
            // A payload that was too large is not in the entry.
            let has_id = entry.author_key == herald_posts::NO_KEY.0
                && entry.message_id.starts_with(&ids)
                && PostId(entry.original_sequence) <= self.author.last_post;
            is_post && (has_key || has_id || self.is_post(PostId(entry.original_sequence), &entry.payload))
        })
        .await
    }

    async fn find(&self, stream: &str, matches: impl Fn(&RawMessage) -> bool) -> Result<Vec<Found>> {
        let mut messages = pin!(self.data.mesh.scan(stream, None, 1, u64::MAX));
        let mut found = Vec::new();
        while let Some(message) = messages.try_next().await? {
            if matches(&message) {
                found.push(Found::from(&message));
            }
        }
        Ok(found)
    }

    fn is_post(&self, id: PostId, payload: &[u8]) -> bool {
        PostCreated::decode(payload).is_ok_and(|post| self.author.wrote(id, &post))
    }

    /// Deletes messages from a stream, once every consumer that gets them has settled them.
    pub(super) async fn delete_messages(&self, stream: &str, found: Vec<Found>) -> Result<()> {
        self.wait_until_settled(stream, |consumer| {
            let gets = |message: &&Found| {
                consumer
                    .filter
                    .as_ref()
                    .is_none_or(|filter| *filter == message.subject)
            };
            found.iter().filter(gets).map(|message| message.sequence).max()
        })
        .await?;
        let messages = found.len() as u64;
        stream::iter(found)
            .map(|message| self.data.mesh.delete_message(stream, message.sequence))
            .buffer_unordered(DELETED_AT_ONCE)
            .try_collect::<()>()
            .await?;
        self.count(ErasedCounts {
            messages,
            ..ErasedCounts::default()
        })
        .await
    }
}
