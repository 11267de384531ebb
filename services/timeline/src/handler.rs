//! Delivers one message of TIMELINE.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use herald_mesh::{Delivery, Handler, Mesh, Settle, Subject};
use herald_model::{Channel, ChunkId, PostId, Recipients, time::Micros};
use herald_proto::mesh_v1::{Backfill, DeliveriesSettled, TimelineChunk};
use herald_store::{Base, Ledger, Outcome, Settlement, Timelines};

use crate::{Metrics, backfill::Backfiller, error::DeliverError};

/// Delivers chunks.
pub(crate) struct Chunks {
    pub(crate) mesh: Mesh,
    pub(crate) timelines: Arc<dyn Timelines>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) backfiller: Backfiller,
    pub(crate) metrics: Metrics,
}

#[async_trait]
impl Handler for Chunks {
    async fn handle(&self, delivery: &Delivery) -> Settle {
        let done = match delivery.subject {
            Subject::TimelineDeliver(_) => match read_chunk(delivery) {
                Ok((chunk, recipients)) => self
                    .deliver(delivery.payload.clone(), &chunk, recipients)
                    .await
                    .map(|()| Settle::Ack),
                Err(settle) => return settle,
            },
            Subject::TimelineBackfill(_) => match read_backfill(delivery) {
                Ok((request, recipients)) => self.backfiller.backfill(&request, &recipients).await,
                Err(settle) => return settle,
            },
            other => return Settle::term(format_args!("timeline doesn't deliver {other}")),
        };
        done.unwrap_or_else(Settle::retry)
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

/// Tells watchers of a chunk that is readable. A watcher that misses it reads it later, so a failure is only logged.
pub(crate) async fn publish_live(mesh: &Mesh, payload: Bytes) {
    if let Err(error) = mesh.publish_live(payload).await {
        tracing::debug!(%error, "watchers were not told of a chunk");
    }
}

impl Chunks {
    /// Readable, told to watchers, durable, recorded, reported: in this order, each step repeatable.
    async fn deliver(
        &self,
        payload: Bytes,
        chunk: &TimelineChunk,
        recipients: Recipients,
    ) -> Result<(), DeliverError> {
        let post = PostId(chunk.post_id);
        let count = recipients.len();
        let durable = self.timelines.deliver(post, recipients).await?;
        let visible_at = Micros::now();
        self.metrics
            .visible(visible_at.since(Micros(chunk.accepted_at_us)), count);
        publish_live(&self.mesh, payload).await;
        durable.await?;
        let settlement = Settlement {
            post,
            channel: Channel::Timeline,
            chunk: ChunkId(chunk.chunk_id),
            base: Base::Any,
            outcome: Outcome::Delivered { count },
            at: visible_at,
        };
        let revision = self.ledger.settle(&settlement).await?;
        self.report(chunk, count, visible_at, revision).await?;
        Ok(())
    }

    async fn report(
        &self,
        chunk: &TimelineChunk,
        count: u32,
        at: Micros,
        revision: u64,
    ) -> Result<(), herald_mesh::Error> {
        let event = DeliveriesSettled {
            post_id: chunk.post_id,
            author_key: chunk.author_key,
            channel: herald_proto::v1::Channel::Timeline.into(),
            chunk_id: chunk.chunk_id,
            delivered_count: count,
            accepted_at_us: chunk.accepted_at_us,
            settled_at_us: at.0,
            revision,
            ..DeliveriesSettled::default()
        };
        self.mesh
            .publish(
                Subject::Settled(Channel::Timeline),
                Some(&event.message_id()),
                &event,
            )
            .await?;
        Ok(())
    }
}
