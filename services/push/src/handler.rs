//! Handles one chunk, from the message to its disposition.

use std::sync::Arc;

use async_trait::async_trait;
use herald_mesh::{Delivery, Disposition, Handler, Mesh, Subject};
use herald_model::{Channel, ChunkId, Lane, PostId, Recipients, UserKey, time::Timestamp};
use herald_posts::PostReader;
use herald_proto::{mesh_v1, v1};
use herald_store::{Devices, ExpectedRevision, Ledger, Preferences, Settlement, Users};
use tracing::{debug, instrument};

use crate::{
    Config, Metrics,
    adapters::{Dispatcher, ledger_state, outcome},
    chunk_lock::ChunkLocks,
    domain::{self, Progress},
    error::AttemptError,
};

/// Delivers chunks.
pub(crate) struct PushHandler {
    pub(crate) mesh: Mesh,
    pub(crate) posts: PostReader,
    pub(crate) users: Arc<dyn Users>,
    pub(crate) devices: Arc<dyn Devices>,
    pub(crate) preferences: Arc<dyn Preferences>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) chunk_locks: ChunkLocks,
    pub(crate) metrics: Metrics,
    pub(crate) config: Config,
}

/// A decoded chunk.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) post: PostId,
    pub(crate) author: UserKey,
    pub(crate) id: ChunkId,
    pub(crate) lane: Lane,
    pub(crate) recipients: Recipients,
    pub(crate) accepted_at: Timestamp,
    pub(crate) expires_at: Timestamp,
}

#[async_trait]
impl Handler for PushHandler {
    async fn handle(&self, delivery: &Delivery) -> Disposition {
        let chunk = match Chunk::decode(delivery) {
            Ok(chunk) => chunk,
            Err(disposition) => return disposition,
        };
        let _guard = self.chunk_locks.lock(chunk.post, chunk.id).await;
        let disposition = self
            .deliver(&chunk, delivery)
            .await
            .unwrap_or_else(Disposition::from);
        let end = match disposition {
            Disposition::Ack => "done",
            Disposition::Retry { .. } | Disposition::Fault { .. } => "retried",
            Disposition::Wait(_) => "waiting",
            Disposition::Term { .. } => "terminated",
        };
        self.metrics.count_chunk(chunk.lane, end);
        disposition
    }
}

impl Chunk {
    /// Decodes a message. The error is the disposition of a malformed message.
    fn decode(delivery: &Delivery) -> Result<Self, Disposition> {
        let Subject::PushDeliver(lane) = delivery.subject else {
            return Err(Disposition::term(format_args!(
                "subject {} is not handled by push",
                delivery.subject
            )));
        };
        let message: mesh_v1::PushChunk = delivery.decode()?;
        let recipients = Recipients::decode(message.recipients, message.recipient_count)
            .map_err(|e| Disposition::term(format_args!("malformed recipients: {e}")))?;
        let id = ChunkId(message.chunk_id);
        // The id is the key of the chunk in the ledger: a wrong id would settle the deliveries of another chunk.
        if recipients.chunk_id() != id {
            return Err(Disposition::term("the chunk id does not match the recipients"));
        }
        Ok(Self {
            post: PostId(message.post_id),
            author: UserKey(message.author_key),
            id,
            lane,
            recipients,
            accepted_at: Timestamp(message.accepted_at_us),
            expires_at: Timestamp(message.expires_at_us),
        })
    }
}

impl PushHandler {
    /// Sends, then records in the ledger, then publishes the event. The caller acknowledges the message.
    #[instrument(
        name = "push send",
        skip_all,
        fields(post_id = chunk.post.0, chunk_id = %chunk.id, recipients = chunk.recipients.len())
    )]
    async fn deliver(&self, chunk: &Chunk, delivery: &Delivery) -> Result<Disposition, AttemptError> {
        let outcome = self.ledger.outcome(chunk.post, Channel::Push, chunk.id).await?;
        let mut progress = Progress::resume(&chunk.recipients, ledger_state(outcome, &chunk.recipients));
        if delivery.redrive.is_some_and(|redriven| redriven.revives()) {
            progress.revive_dead();
        }
        let (before, revision_before) = (progress.counts(), progress.revision());
        let bisect = delivery.attempt >= self.config.isolate_attempts_min;
        let attempted = self.attempt(chunk, &mut progress, bisect).await;
        let failures = progress.failures();
        if attempted.is_ok() && delivery.is_last_attempt() {
            progress.settle_all_pending();
        }
        // Recorded after a failure too: accepted pushes must not be sent again.
        self.record(chunk, &mut progress).await?;
        self.metrics.count_settled(chunk.lane, progress.counts() - before);
        attempted?;
        // A chunk without pending recipients always publishes: an earlier attempt may have crashed between record and
        // event.
        if progress.revision() != revision_before || (progress.revision() > 0 && !progress.is_pending()) {
            self.publish_settled(chunk, &progress).await?;
        }

        if progress.is_pending() {
            let remaining = chunk.expires_at.since(Timestamp::now());
            let after = domain::retry_delay(progress.retry_after(), remaining, self.config.retry_after_max());
            return Ok(Disposition::Retry {
                after,
                reason: format!("push is pending: {failures}"),
            });
        }
        // Each dead recipient must be covered by a dead letter, also after a permanent error at the first attempt.
        if progress.counts().dead > 0 {
            return Ok(Disposition::term(format_args!("push failed: {failures}")));
        }
        Ok(Disposition::Ack)
    }

    /// Records the progress in the ledger if it has changed.
    pub(crate) async fn record(&self, chunk: &Chunk, progress: &mut Progress) -> Result<(), AttemptError> {
        if !progress.is_changed() {
            return Ok(());
        }
        let settlement = Settlement {
            post: chunk.post,
            channel: Channel::Push,
            chunk: chunk.id,
            base: ExpectedRevision::Revision(progress.revision()),
            outcome: outcome(progress),
            at: Timestamp::now(),
        };
        let revision = self.ledger.settle(&settlement).await?;
        progress.mark_recorded(revision);
        Ok(())
    }

    /// Publishes the event with the recorded counts of the chunk.
    async fn publish_settled(&self, chunk: &Chunk, progress: &Progress) -> Result<(), AttemptError> {
        let counts = progress.counts();
        let event = mesh_v1::DeliveriesSettled::from(mesh_v1::SettledChunk {
            post_id: chunk.post.0,
            author_key: chunk.author.0,
            channel: v1::Channel::Push.into(),
            chunk_id: chunk.id.0,
            delivered_count: counts.delivered,
            suppressed_count: counts.suppressed,
            expired_count: counts.expired,
            dead_count: counts.dead,
            accepted_at_us: chunk.accepted_at.0,
            settled_at_us: Timestamp::now().0,
            revision: progress.revision(),
        });
        let id = event.message_id();
        let published = self
            .mesh
            .publish(Subject::Settled(Channel::Push), Some(&id), &event)
            .await?;
        debug!(
            id,
            duplicate = published.duplicate,
            "settled deliveries published"
        );
        Ok(())
    }
}
