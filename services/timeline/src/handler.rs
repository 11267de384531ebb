//! Delivers one message of TIMELINE.

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

/// Delivers chunks.
#[derive(Clone)]
pub(crate) struct TimelineHandler {
    pub(crate) timelines: Arc<dyn Timelines>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) watchers: Watchers,
    pub(crate) reporter: Reporter,
    pub(crate) backfiller: Backfiller,
    pub(crate) metrics: Metrics,
    /// From this attempt on a chunk that fails by a fault is done part by part.
    pub(crate) isolate_attempts_min: u64,
}

#[async_trait]
impl Handler for TimelineHandler {
    async fn handle(&self, delivery: &Delivery) -> Disposition {
        let handled = match delivery.subject {
            Subject::TimelineDeliver(_) => self.deliver(delivery).await,
            Subject::TimelineBackfill(_) => self.backfill(delivery).await,
            other => Err(Disposition::term(format_args!(
                "timeline doesn't deliver {other}"
            ))),
        };
        handled.map_or_else(|settle| settle, |()| Disposition::Ack)
    }
}

fn recipients(bytes: Bytes, count: u32) -> Result<Recipients, Disposition> {
    Recipients::decode(bytes, count)
        .map_err(|error| Disposition::term(format_args!("malformed recipients: {error}")))
}

impl TimelineHandler {
    async fn backfill(&self, delivery: &Delivery) -> Result<(), Disposition> {
        let request: Backfill = delivery.decode()?;
        let recipients = recipients(request.recipients.clone(), request.recipient_count)?;
        let bisect = self.bisects(delivery);
        self.backfiller.backfill(&request, &recipients, bisect).await
    }

    /// Puts the post on all timelines, then records and reports it. Recipients whose timelines fail permanently are recorded as
    /// dead; each step can be repeated.
    async fn deliver(&self, delivery: &Delivery) -> Result<(), Disposition> {
        let chunk: TimelineChunk = delivery.decode()?;
        let recipients = recipients(chunk.recipients.clone(), chunk.recipient_count)?;
        if recipients.chunk_id() != ChunkId(chunk.chunk_id) {
            return Err(Disposition::term("the chunk's id is not that of its recipients"));
        }
        let count = recipients.len();
        let put = isolate(count as usize, self.bisects(delivery), |part| {
            self.put(&chunk, recipients.part(part))
        })
        .await;
        if put.is_complete() {
            let visible_at = put.done.first().map_or_else(Timestamp::now, |(_, at)| *at);
            let outcome = Outcome::Delivered { count };
            self.record(&chunk, ExpectedRevision::Any, outcome, visible_at)
                .await?;
            return Ok(());
        }
        self.record_partial(&chunk, &recipients, put).await
    }

    /// Whether this attempt looks for the recipients that cause a permanent failure.
    fn bisects(&self, delivery: &Delivery) -> bool {
        delivery.attempt >= self.isolate_attempts_min
    }

    /// Makes the post readable, tells watchers, and waits until it is durable. Returns when it was readable.
    async fn put(&self, chunk: &TimelineChunk, recipients: Recipients) -> Result<Timestamp, DeliverError> {
        let (post, author) = (PostId(chunk.post_id), UserKey(chunk.author_key));
        let accepted_at = Timestamp(chunk.accepted_at_us);
        let durable = self.timelines.deliver(post, recipients.clone()).await?;
        let visible_at = Timestamp::now();
        self.metrics
            .visible(visible_at.since(accepted_at), recipients.len());
        let live = TimelineChunk::new(post, author, accepted_at, &recipients);
        self.watchers.tell(live).await;
        durable.await?;
        Ok(visible_at)
    }

    /// Records who has the post. Nobody is recorded as dead while a transient failure has left recipients open: the chunk comes
    /// again.
    async fn record_partial(
        &self,
        chunk: &TimelineChunk,
        recipients: &Recipients,
        put: Isolated<Timestamp, DeliverError>,
    ) -> Result<(), Disposition> {
        let Isolated {
            done,
            mut failed,
            stopped,
        } = put;
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
            let failed_places = failed.iter().map(|(place, _)| *place);
            let outcome = partial_outcome(recipients, before, reached, failed_places);
            let dead = outcome.counts().dead;
            self.record(chunk, base, outcome, Timestamp::now()).await?;
            if let (Some((_, reason)), 1..) = (failed.first(), dead) {
                self.metrics.isolated.inc_by(dead.into());
                return Err(Disposition::term(isolated_reason(reason, dead, recipients.len())));
            }
        }
        stopped.map_or(Ok(()), |failure| Err(failure.into()))
    }

    /// Records what became of a chunk, and reports it.
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
