//! Reads what letters carried: from beside them in the store, and from DLQ what is not there.

use std::collections::{HashMap, HashSet};

use futures::{TryStreamExt as _, future};
use herald_mesh::{RawMessage, streams};
use herald_proto::{mesh_v1::DeadLetter, v1};
use herald_store::{Content, Letter, LetterId};

use super::Redrives;
use crate::error::StepError;

/// Letters are read together when no more messages of DLQ than this are between them.
const READ_SPAN_MAX: u64 = 256;

/// A letter, and what it carried or why that can't be had.
pub(super) type Read = (Letter, Result<Content, &'static str>);

impl Redrives {
    /// Letters with what they carried.
    pub(super) async fn read(&self, letters: Vec<Letter>) -> Vec<Result<Read, StepError>> {
        let ids: Vec<LetterId> = letters.iter().map(|letter| letter.id).collect();
        let kept = self.letters.contents(&ids).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "what letters carried can't be read from the store: DLQ has it");
            vec![None; ids.len()]
        });
        let elsewhere = ids.iter().zip(&kept).filter(|(_, kept)| kept.is_none());
        let elsewhere: HashSet<u64> = elsewhere.map(|(id, _)| id.0).collect();
        let mut there = self.read_together(&elsewhere).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "letters can't be read together, and are read one by one");
            HashMap::new()
        });
        let read = letters.into_iter().zip(kept).map(|(letter, kept)| {
            let found = there.remove(&letter.id.0);
            async move {
                let content = match (kept, found) {
                    (Some(content), _) => Ok(content),
                    (None, Some(message)) => self.content_of(&letter, &message).await?,
                    (None, None) => match self.mesh.message(streams::DLQ, letter.id.0).await? {
                        Some(message) => self.content_of(&letter, &message).await?,
                        None => Err("it is no longer in DLQ"),
                    },
                };
                Ok((letter, content))
            }
        });
        future::join_all(read).await
    }

    /// The messages of letters in DLQ, if there is not much between them.
    async fn read_together(&self, ids: &HashSet<u64>) -> Result<HashMap<u64, RawMessage>, StepError> {
        let mut there = HashMap::new();
        if let (Some(first), Some(last)) = (ids.iter().min(), ids.iter().max())
            && last - first < READ_SPAN_MAX
        {
            let messages = self.mesh.scan(streams::DLQ, None, *first, *last);
            let mut messages = std::pin::pin!(messages);
            while let Some(message) = messages.try_next().await? {
                if ids.contains(&message.sequence) {
                    there.insert(message.sequence, message);
                }
            }
        }
        Ok(there)
    }

    /// What a letter carried, by its message in DLQ; the inner error is why that can't be had.
    async fn content_of(
        &self,
        letter: &Letter,
        message: &RawMessage,
    ) -> Result<Result<Content, &'static str>, StepError> {
        let Ok(body) = message.decode::<DeadLetter>() else {
            return Ok(Err("it can't be read"));
        };
        let payload = match body.payload_state() {
            v1::DeadLetterPayload::Kept => body.payload,
            v1::DeadLetterPayload::TooLarge => {
                let origin = &letter.origin;
                match self.mesh.message(&origin.stream, origin.sequence).await? {
                    Some(message) => message.payload,
                    None => return Ok(Err("it is no longer in its stream")),
                }
            }
            v1::DeadLetterPayload::Gone | v1::DeadLetterPayload::Unspecified => {
                return Ok(Err("what it carried is gone"));
            }
        };
        Ok(Ok(Content {
            payload,
            trace_parent: body.trace_parent,
            trace_state: body.trace_state,
        }))
    }
}
