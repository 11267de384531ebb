//! Records a failure: reopens the redriven dead letter, marks its chunk dead in the ledger, and publishes the outcome
//! to analytics.

use std::sync::Arc;

use herald_failure::Classify as _;
use herald_mesh::{Mesh, Subject, streams};
use herald_model::{ChunkId, PostId, time::Timestamp};
use herald_proto::{
    mesh_v1::{DeliveriesSettled, DlqEntry, SettledChunk},
    v1,
};
use herald_store::{DeadLetter, DeadLetterState, DeadLetters, DeadMessage, Ledger, Reopened, Reopening};

use crate::{Metrics, convert, dlq_entry, error::StepError};

/// Records failures. Clones share the connections.
#[derive(Clone)]
pub(crate) struct FailureRecorder {
    pub(crate) mesh: Mesh,
    pub(crate) dead_letters: Arc<dyn DeadLetters>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) metrics: Metrics,
}

impl FailureRecorder {
    /// Reopens a dead letter and marks its chunk dead. `entry` is the DLQ entry of the failure. Each step is
    /// idempotent.
    pub(crate) async fn reopen(
        &self,
        reopening: &Reopening,
        entry: &DlqEntry,
    ) -> Result<Reopened, StepError> {
        let reopened = self.dead_letters.reopen(reopening).await?;
        match reopened {
            Reopened::Open => {
                self.metrics.failed_again.inc();
                self.mark_dead(entry).await?;
            }
            // The ledger step may have failed before. If the dead letter was redriven or discarded since, that step is
            // done.
            Reopened::AlreadyRecorded => {
                let stored = self.dead_letters.get(&[reopening.dead_letter]).await?;
                let open = |dead_letter: &DeadLetter| {
                    dead_letter.state == DeadLetterState::Open && dead_letter.round == reopening.round
                };
                if stored.first().and_then(Option::as_ref).is_some_and(open) {
                    self.mark_dead(entry).await?;
                }
            }
            Reopened::NotFound => {}
        }
        Ok(reopened)
    }

    /// Reopens a dead letter whose message was removed from REDRIVE, with the entry in DLQ. A worker may have started
    /// on the message and left recipients pending, so the chunk is marked dead too.
    pub(crate) async fn reopen_removed(&self, reopening: &Reopening) -> Result<Reopened, StepError> {
        let message = self.mesh.message(streams::DLQ, reopening.dead_letter.0).await?;
        let entry = message.and_then(|message| message.decode().ok());
        self.reopen(reopening, &entry.unwrap_or_default()).await
    }

    /// Marks the pending recipients of the entry's chunk dead in the ledger, and publishes the outcome to analytics.
    /// Does nothing for an entry without a chunk.
    pub(crate) async fn mark_dead(&self, entry: &DlqEntry) -> Result<(), StepError> {
        let (Some(channel), true) = (convert::channel_from_proto(entry.channel()), entry.chunk_id != 0)
        else {
            return Ok(());
        };
        let (post, chunk) = (PostId(entry.post_id), ChunkId(entry.chunk_id));
        let now = Timestamp::now();
        let dead = DeadMessage {
            post,
            channel,
            chunk,
            // Recipients of a later generation continue in a copy of the message.
            generation: dlq_entry::retry_generation(entry),
        };
        let marked_dead = match self.ledger.mark_dead(&dead, now).await {
            // A retry would block all redrives, which wait until each failure is recorded. The dead letter is stored,
            // and an audit finds the malformed row.
            Err(error) if !error.is_transient() => {
                tracing::error!(
                    post_id = post.0,
                    %channel,
                    chunk_id = %chunk,
                    %error,
                    "can't mark the chunk of a dead letter dead in the ledger; run an audit of the post"
                );
                return Ok(());
            }
            marked_dead => marked_dead?,
        };
        let Some(marked_dead) = marked_dead else {
            tracing::debug!(
                post_id = post.0,
                chunk_id = %chunk,
                "the ledger has no plan of a dead letter's chunk"
            );
            return Ok(());
        };
        let event = DeliveriesSettled::from(SettledChunk {
            post_id: post.0,
            author_key: entry.author_key,
            channel: v1::Channel::from(channel).into(),
            chunk_id: chunk.0,
            delivered_count: marked_dead.counts.delivered,
            suppressed_count: marked_dead.counts.suppressed,
            expired_count: marked_dead.counts.expired,
            dead_count: marked_dead.counts.dead,
            accepted_at_us: entry.accepted_at_us,
            settled_at_us: now.0,
            revision: marked_dead.revision,
        });
        let id = event.message_id();
        self.mesh
            .publish(Subject::Settled(channel), Some(&id), &event)
            .await?;
        Ok(())
    }
}
