//! Reads what letters are about.

use std::collections::{HashMap, HashSet};

use futures::{TryStreamExt as _, future};
use herald_mesh::{RawMessage, streams};
use herald_store::Letter;

use super::Redrives;
use crate::error::StepError;

/// Letters are read together when no more messages of DLQ than this are between them.
const READ_SPAN_MAX: u64 = 256;

impl Redrives {
    /// Letters with their messages in DLQ; `None` for one that is no longer there.
    pub(super) async fn read(
        &self,
        letters: Vec<Letter>,
    ) -> Vec<Result<(Letter, Option<RawMessage>), StepError>> {
        let mut there = self.read_together(&letters).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "letters can't be read together, and are read one by one");
            HashMap::new()
        });
        let read = letters.into_iter().map(|letter| {
            let found = there.remove(&letter.id.0);
            async move {
                let message = match found {
                    Some(message) => Some(message),
                    None => self.mesh.message(streams::DLQ, letter.id.0).await?,
                };
                Ok((letter, message))
            }
        });
        future::join_all(read).await
    }

    /// The messages of letters, if there is not much between them.
    async fn read_together(&self, letters: &[Letter]) -> Result<HashMap<u64, RawMessage>, StepError> {
        let ids: HashSet<u64> = letters.iter().map(|letter| letter.id.0).collect();
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
}
