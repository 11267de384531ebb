//! What a failure means: a dead letter that was redriven is open again, its chunk is given up in the ledger, and analytics hears of
//! it.

use std::sync::Arc;

use herald_failure::Classify as _;
use herald_mesh::{Mesh, Subject, streams};
use herald_model::{ChunkId, PostId, time::Timestamp};
use herald_proto::{
    mesh_v1::{DeliveriesSettled, DlqEntry, SettledChunk},
    v1,
};
use herald_store::{DeadLetter, DeadLetterState, DeadLetters, Ledger, Reopened, Reopening};

use crate::{Metrics, error::StepError, wire};

/// Records failures. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Failures {
    pub(crate) mesh: Mesh,
    pub(crate) dead_letters: Arc<dyn DeadLetters>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) metrics: Metrics,
}

impl Failures {
    /// Opens a dead letter again, whose message had this body when it failed; each step repeatable.
    pub(crate) async fn reopen(&self, reopening: &Reopening, body: &DlqEntry) -> Result<Reopened, StepError> {
        let reopened = self.dead_letters.reopen(reopening).await?;
        match reopened {
            Reopened::Open => {
                self.metrics.failed_again.inc();
                self.mark_dead(body).await?;
            }
            // The rest may not have been done the first time. If the dead letter is decided upon since, it was.
            Reopened::Known => {
                let known = self.dead_letters.get(&[reopening.dead_letter]).await?;
                let open = |dead_letter: &DeadLetter| {
                    dead_letter.state == DeadLetterState::Open && dead_letter.round == reopening.round
                };
                if known.first().and_then(Option::as_ref).is_some_and(open) {
                    self.mark_dead(body).await?;
                }
            }
            Reopened::Unknown => {}
        }
        Ok(reopened)
    }

    /// Opens a dead letter again whose message was removed from REDRIVE and tells nothing any more. A worker may have had it in hand, so
    /// what it was about is given up as well.
    pub(crate) async fn reopen_removed(&self, reopening: &Reopening) -> Result<Reopened, StepError> {
        let message = self.mesh.message(streams::DLQ, reopening.dead_letter.0).await?;
        let body = message.and_then(|message| message.decode().ok());
        self.reopen(reopening, &body.unwrap_or_default()).await
    }

    /// Gives up in the ledger what the dead letter's chunk still owes, and tells analytics.
    pub(crate) async fn mark_dead(&self, body: &DlqEntry) -> Result<(), StepError> {
        let (Some(channel), true) = (wire::channel_from(body.channel()), body.chunk_id != 0) else {
            return Ok(());
        };
        let (post, chunk) = (PostId(body.post_id), ChunkId(body.chunk_id));
        let now = Timestamp::now();
        let marked_dead = match self.ledger.mark_dead(post, channel, chunk, now).await {
            // The dead letter is there, an audit finds the row, and to try it again would hold up all redrives: they wait until
            // each failure is known.
            Err(error) if !error.is_transient() => {
                tracing::error!(
                    post_id = post.0,
                    %channel,
                    chunk_id = %chunk,
                    %error,
                    "a dead letter of a chunk that can't be given up in the ledger"
                );
                return Ok(());
            }
            marked_dead => marked_dead?,
        };
        let Some(marked_dead) = marked_dead else {
            tracing::debug!(
                post_id = post.0,
                chunk_id = %chunk,
                "a dead letter of a chunk that nobody planned"
            );
            return Ok(());
        };
        let event = DeliveriesSettled::from(SettledChunk {
            post_id: post.0,
            author_key: body.author_key,
            channel: v1::Channel::from(channel).into(),
            chunk_id: chunk.0,
            delivered_count: marked_dead.counts.delivered,
            suppressed_count: marked_dead.counts.suppressed,
            expired_count: marked_dead.counts.expired,
            dead_count: marked_dead.counts.dead,
            accepted_at_us: body.accepted_at_us,
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
