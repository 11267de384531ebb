//! Handles one message of TIMELINE: a chunk or a backfill.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use herald_failure::{Isolated, isolate};
use herald_mesh::{Delivery, Disposition, Handler, Subject};
use herald_model::{Channel, ChunkId, PostId, Recipients, UserKey, time::Timestamp};
use herald_proto::mesh_v1::{Backfill, SettledChunk, TimelineChunk};
use herald_store::{ExpectedRevision, Ledger, Outcome, Settlement, Timelines};

use crate::{
    Metrics,
    adapters::{Reporter, Watchers},
    backfill::Backfiller,
    domain::{isolated_reason, partial_outcome},
    error::DeliverError,
};

/// Delivers chunks and backfills.
#[derive(Clone)]
pub(crate) struct TimelineHandler {
    pub(crate) timelines: Arc<dyn Timelines>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) watchers: Watchers,
    pub(crate) reporter: Reporter,
    pub(crate) backfiller: Backfiller,
    pub(crate) metrics: Metrics,
    /// The first attempt that bisects a chunk after a permanent error.
    pub(crate) isolate_attempts_min: u64,
}

#[async_trait]
impl Handler for TimelineHandler {
    async fn handle(&self, delivery: &Delivery) -> Disposition {
        let handled = match delivery.subject {
            Subject::TimelineDeliver(_) => self.deliver(delivery).await,
            Subject::TimelineBackfill(_) => self.backfill(delivery).await,
            other => Err(Disposition::term(format_args!(
                "subject {other} is not handled by timeline"
            ))),
        };
        handled.map_or_else(|disposition| disposition, |()| Disposition::Ack)
    }
}

fn decode_recipients(bytes: Bytes, count: u32) -> Result<Recipients, Disposition> {
    Recipients::decode(bytes, count)
        .map_err(|error| Disposition::term(format_args!("malformed recipients: {error}")))
}

impl TimelineHandler {
    async fn backfill(&self, delivery: &Delivery) -> Result<(), Disposition> {
        let request: Backfill = delivery.decode()?;
        let recipients = decode_recipients(request.recipients.clone(), request.recipient_count)?;
        let bisect = self.should_bisect(delivery);
        self.backfiller
            .backfill(delivery, &request, &recipients, bisect)
            .await
    }

    /// Writes the post to all timelines, then records and publishes the outcome. Recipients that cause a permanent
    /// error are recorded as dead. Every step is idempotent.
    async fn deliver(&self, delivery: &Delivery) -> Result<(), Disposition> {
        let chunk: TimelineChunk = delivery.decode()?;
        let recipients = decode_recipients(chunk.recipients.clone(), chunk.recipient_count)?;
        if recipients.chunk_id() != ChunkId(chunk.chunk_id) {
            return Err(Disposition::term("the chunk id does not match the recipients"));
        }
        let count = recipients.len();
        let isolated = isolate(count as usize, self.should_bisect(delivery), |part| {
            self.deliver_part(&chunk, recipients.part(part))
        })
        .await;
        if isolated.is_complete() {
            let visible_at = isolated.done.first().map_or_else(Timestamp::now, |(_, at)| *at);
            let outcome = Outcome::Delivered { count };
            self.record(&chunk, ExpectedRevision::Any, outcome, visible_at)
                .await?;
            return Ok(());
        }
        self.record_partial(&chunk, &recipients, isolated).await
    }

    /// Whether this attempt isolates the recipients that cause a permanent error.
    fn should_bisect(&self, delivery: &Delivery) -> bool {
        delivery.attempt >= self.isolate_attempts_min
    }

    /// Makes the post readable, publishes it to watchers, and waits until it is durable. Returns the time from which on
    /// it is readable.
    async fn deliver_part(
        &self,
        chunk: &TimelineChunk,
        recipients: Recipients,
    ) -> Result<Timestamp, DeliverError> {
        let (post, author) = (PostId(chunk.post_id), UserKey(chunk.author_key));
        let accepted_at = Timestamp(chunk.accepted_at_us);
        let delivered = self.timelines.deliver(post, recipients.clone()).await?;
        let visible_at = Timestamp::now();
        self.metrics
            .observe_visible(visible_at.since(accepted_at), recipients.len());
        let live = TimelineChunk::new(post, author, accepted_at, &recipients);
        self.watchers.notify(live).await;
        delivered.durable.await?;
        Ok(visible_at)
    }

    /// Records the recipients that have the post. If a transient error stopped the attempt, no recipient is recorded as
    /// dead because the chunk is redelivered.
    async fn record_partial(
        &self,
        chunk: &TimelineChunk,
        recipients: &Recipients,
        isolated: Isolated<Timestamp, DeliverError>,
    ) -> Result<(), Disposition> {
        let Isolated {
            done,
            mut failed,
            stopped,
        } = isolated;
        if stopped.is_some() {
            failed.clear();
        }
        if !done.is_empty() || !failed.is_empty() {
            let (post, id) = (PostId(chunk.post_id), ChunkId(chunk.chunk_id));
            let recorded = self.ledger.outcome(post, Channel::Timeline, id).await;
            let recorded = recorded.map_err(DeliverError::from)?;
            let base = ExpectedRevision::Revision(recorded.as_ref().map_or(0, |recorded| recorded.revision));
            let before = recorded.as_ref().map(|recorded| &recorded.outcome);
            let reached = done.into_iter().map(|(part, _)| part);
            let failed_indices = failed.iter().map(|(index, _)| *index);
            let outcome = partial_outcome(recipients, before, reached, failed_indices);
            let dead = outcome.counts().dead;
            self.record(chunk, base, outcome, Timestamp::now()).await?;
            if let (Some((_, reason)), 1..) = (failed.first(), dead) {
                self.metrics.isolated.inc_by(dead.into());
                return Err(Disposition::term(isolated_reason(reason, dead, recipients.len())));
            }
        }
        stopped.map_or(Ok(()), |failure| Err(failure.into()))
    }

    /// Records the outcome of a chunk in the ledger, and publishes it.
    async fn record(
        &self,
        chunk: &TimelineChunk,
        base: ExpectedRevision,
        outcome: Outcome,
        at: Timestamp,
    ) -> Result<(), DeliverError> {
        let counts = outcome.counts();
        let settlement = Settlement {
            post: PostId(chunk.post_id),
            channel: Channel::Timeline,
            chunk: ChunkId(chunk.chunk_id),
            base,
            outcome,
            at,
            keep_claim: None,
        };
        let revision = self.ledger.settle(&settlement).await?;
        let settled = SettledChunk {
            post_id: chunk.post_id,
            author_key: chunk.author_key,
            channel: herald_proto::v1::Channel::Timeline.into(),
            chunk_id: chunk.chunk_id,
            delivered_count: counts.delivered,
            suppressed_count: counts.suppressed,
            expired_count: counts.expired,
            dead_count: counts.dead,
            accepted_at_us: chunk.accepted_at_us,
            settled_at_us: at.0,
            revision,
        };
        self.reporter.report(settled).await
    }
}
