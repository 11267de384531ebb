//! Delivers one message of TIMELINE.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use herald_failure::Classify;
use herald_mesh::{Delivery, Handler, Settle, Subject};
use herald_model::{Channel, ChunkId, PostId, Recipients, time::Micros};
use herald_proto::mesh_v1::{Backfill, SettledChunk, TimelineChunk};
use herald_runtime::isolate::{self, Failure};
use herald_store::{Base, Ledger, Outcome, Settlement, Timelines};

use crate::{Metrics, backfill::Backfiller, error::DeliverError, report::Reporter, watchers::Watchers};

/// Delivers chunks.
#[derive(Clone)]
pub(crate) struct Chunks {
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
impl Handler for Chunks {
    async fn handle(&self, delivery: &Delivery) -> Settle {
        match delivery.subject {
            Subject::TimelineDeliver(_) => match read_chunk(delivery) {
                Ok((chunk, recipients)) => self.chunk(delivery, &chunk, &recipients).await,
                Err(settle) => settle,
            },
            Subject::TimelineBackfill(_) => match read_backfill(delivery) {
                Ok((request, recipients)) => self.backfill(delivery, &request, &recipients).await,
                Err(settle) => settle,
            },
            other => Settle::term(format_args!("timeline doesn't deliver {other}")),
        }
    }
}

fn read_chunk(delivery: &Delivery) -> Result<(TimelineChunk, Recipients), Settle> {
    let chunk: TimelineChunk = delivery.decode()?;
    let recipients = recipients(&chunk.recipients, chunk.recipient_count)?;
    if recipients.chunk_id() != ChunkId(chunk.chunk_id) {
        return Err(Settle::term("the chunk's id is not that of its recipients"));
    }
    Ok((chunk, recipients))
}

fn read_backfill(delivery: &Delivery) -> Result<(Backfill, Recipients), Settle> {
    let request: Backfill = delivery.decode()?;
    let recipients = recipients(&request.recipients, request.recipient_count)?;
    Ok((request, recipients))
}

fn recipients(bytes: &Bytes, count: u32) -> Result<Recipients, Settle> {
    Recipients::decode(bytes.clone(), count)
        .map_err(|error| Settle::term(format_args!("malformed recipients: {error}")))
}

impl Chunks {
    async fn backfill(&self, delivery: &Delivery, request: &Backfill, recipients: &Recipients) -> Settle {
        let backfilling = self.backfiller.backfill(request, recipients);
        match isolate::sorted(backfilling, Classify::is_transient).await {
            Ok(settle) => settle,
            Err(Failure::Passing(error)) => error.into(),
            Err(Failure::Fault(reason)) if delivery.attempt < self.isolate_attempts_min => {
                Settle::fault(reason)
            }
            Err(Failure::Fault(_)) => self.backfiller.isolate(request, recipients).await,
        }
    }

    async fn chunk(&self, delivery: &Delivery, chunk: &TimelineChunk, recipients: &Recipients) -> Settle {
        let delivering = self.deliver(chunk, recipients);
        match isolate::sorted(delivering, Classify::is_transient).await {
            Ok(()) => Settle::Ack,
            Err(Failure::Passing(error)) => error.into(),
            Err(Failure::Fault(reason)) if delivery.attempt < self.isolate_attempts_min => {
                Settle::fault(reason)
            }
            Err(Failure::Fault(_)) => {
                let isolated = self.isolate(chunk, recipients).await;
                isolated.unwrap_or_else(Settle::from)
            }
        }
    }

    /// Readable, told to watchers, durable, recorded, reported: in this order, each step repeatable.
    async fn deliver(&self, chunk: &TimelineChunk, recipients: &Recipients) -> Result<(), DeliverError> {
        let post = PostId(chunk.post_id);
        let count = recipients.len();
        let durable = self.timelines.deliver(post, recipients.clone()).await?;
        let visible_at = Micros::now();
        self.metrics
            .visible(visible_at.since(Micros(chunk.accepted_at_us)), count);
        self.watchers.tell(chunk.clone()).await;
        durable.await?;
        let outcome = Outcome::Delivered { count };
        self.record(chunk, Base::Any, outcome, visible_at).await
    }

    /// Records what became of a chunk, and reports it.
    pub(crate) async fn record(
        &self,
        chunk: &TimelineChunk,
        base: Base,
        outcome: Outcome,
        at: Micros,
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
