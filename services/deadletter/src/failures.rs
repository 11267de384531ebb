//! What a failure means: a letter that was redriven is open again, its chunk is given up in the ledger, and analytics hears of
//! it.

use std::sync::Arc;

use herald_failure::Classify as _;
use herald_mesh::{Mesh, Subject, streams};
use herald_model::{ChunkId, PostId, time::Micros};
use herald_proto::{
    mesh_v1::{DeadLetter, DeliveriesSettled, SettledChunk},
    v1,
};
use herald_store::{DeadLetters, Ledger, Letter, LetterState, Reopened, Reopening};

use crate::{Metrics, error::StepError, wire};

/// Records failures. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Failures {
    pub(crate) mesh: Mesh,
    pub(crate) letters: Arc<dyn DeadLetters>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) metrics: Metrics,
}

impl Failures {
    /// Opens a letter again, whose message had this body when it failed; each step repeatable.
    pub(crate) async fn reopen(
        &self,
        reopening: &Reopening,
        body: &DeadLetter,
    ) -> Result<Reopened, StepError> {
        let reopened = self.letters.reopen(reopening).await?;
        match reopened {
            Reopened::Open => {
                self.metrics.failed_again.inc();
                self.bury(body).await?;
            }
            // The rest may not have been done the first time. If the letter is decided upon since, it was.
            Reopened::Known => {
                let known = self.letters.get(&[reopening.letter]).await?;
                let open =
                    |letter: &Letter| letter.state == LetterState::Open && letter.round == reopening.round;
                if known.first().and_then(Option::as_ref).is_some_and(open) {
                    self.bury(body).await?;
                }
            }
            Reopened::Unknown => {}
        }
        Ok(reopened)
    }

    /// Opens a letter again whose message was removed from REDRIVE and tells nothing any more. A worker may have had it in hand, so
    /// what it was about is given up as well.
    pub(crate) async fn reopen_removed(&self, reopening: &Reopening) -> Result<Reopened, StepError> {
        let message = self.mesh.message(streams::DLQ, reopening.letter.0).await?;
        let body = message.and_then(|message| message.decode().ok());
        self.reopen(reopening, &body.unwrap_or_default()).await
    }

    /// Gives up in the ledger what the letter's chunk still owes, and tells analytics.
    pub(crate) async fn bury(&self, body: &DeadLetter) -> Result<(), StepError> {
        let (Some(channel), true) = (wire::channel_from(body.channel()), body.chunk_id != 0) else {
            return Ok(());
        };
        let (post, chunk) = (PostId(body.post_id), ChunkId(body.chunk_id));
        let now = Micros::now();
        let buried = match self.ledger.bury(post, channel, chunk, now).await {
            // The letter is there, an audit finds the row, and to try it again would hold up all redrives: they wait until
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
            buried => buried?,
        };
        let Some(buried) = buried else {
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
            delivered_count: buried.counts.delivered,
            suppressed_count: buried.counts.suppressed,
            expired_count: buried.counts.expired,
            dead_count: buried.counts.dead,
            accepted_at_us: body.accepted_at_us,
            settled_at_us: now.0,
            revision: buried.revision,
        });
        let id = event.message_id();
        self.mesh
            .publish(Subject::Settled(channel), Some(&id), &event)
            .await?;
        Ok(())
    }
}
