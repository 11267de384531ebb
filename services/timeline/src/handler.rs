//! Handles one message of TIMELINE: a chunk or a backfill.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use herald_failure::{Isolated, isolate};
use herald_mesh::{Delivery, Disposition, Handler, Subject};
use herald_model::{Channel, ChunkId, PostId, Recipients, UserKey, time::Timestamp};
use herald_proto::mesh_v1::{Backfill, SettledChunk, TimelineChunk};
use herald_runtime::wait::Waiting;
use herald_store::{Delivered, ExpectedRevision, Ledger, Outcome, Settlement, Timelines};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info_span};

use crate::{
    Metrics,
    adapters::{Reporter, Watchers},
    backfill::Backfiller,
    domain::{Suppressed, isolated_reason, partial_outcome, without_suppressed},
    error::{DeliverError, Failure},
};

/// Delivers chunks and backfills.
#[derive(Clone)]
pub(crate) struct TimelineHandler {
    pub(crate) timelines: Arc<dyn Timelines>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) watchers: Watchers,
    pub(crate) reporter: Reporter,
    pub(crate) backfiller: Backfiller,
    pub(crate) waiting: Waiting,
    pub(crate) metrics: Metrics,
    /// The first attempt that bisects a chunk after a permanent error.
    pub(crate) isolate_attempts_min: u64,
    /// Ends the waits of messages.
    pub(crate) stop: CancellationToken,
}

/// A part of a chunk that was delivered.
#[derive(Debug)]
struct DeliveredPart {
    /// Time from which on the post is readable.
    visible_at: Timestamp,
    /// The recipients whose timelines don't get the post.
    suppressed: Suppressed,
    /// Losses of timelines that were recorded before the delivery.
    losses: u64,
}

#[async_trait]
impl Handler for TimelineHandler {
    /// While the store can't be used, the message waits here: heartbeats keep it, and it spends no attempt.
    async fn handle(&self, delivery: &Delivery) -> Disposition {
        let done = self
            .waiting
            .until_done(&self.stop, DeliverError::waits_for_store, || async {
                match self.handle_once(delivery).await {
                    Ok(()) => Ok(Disposition::Ack),
                    Err(Failure::Settled(disposition)) => Ok(disposition),
                    Err(Failure::Error(error)) => Err(error),
                }
            });
        match done.await {
            Some(Ok(disposition)) => disposition,
            Some(Err(error)) => error.into(),
            None => DeliverError::Stopped.into(),
        }
    }
}

fn decode_recipients(bytes: Bytes, count: u32) -> Result<Recipients, Disposition> {
    Recipients::decode(bytes, count)
        .map_err(|error| Disposition::term(format_args!("malformed recipients: {error}")))
}

/// Decodes a chunk. The error is the disposition of a malformed message.
fn decode_chunk(delivery: &Delivery) -> Result<(TimelineChunk, Recipients), Disposition> {
    let chunk: TimelineChunk = delivery.decode()?;
    let recipients = decode_recipients(chunk.recipients.clone(), chunk.recipient_count)?;
    if recipients.chunk_id() != ChunkId(chunk.chunk_id) {
        return Err(Disposition::term("the chunk id does not match the recipients"));
    }
    Ok((chunk, recipients))
}

/// Decodes a backfill. The error is the disposition of a malformed message.
fn decode_backfill(delivery: &Delivery) -> Result<(Backfill, Recipients), Disposition> {
    let request: Backfill = delivery.decode()?;
    let recipients = decode_recipients(request.recipients.clone(), request.recipient_count)?;
    Ok((request, recipients))
}

impl TimelineHandler {
    async fn handle_once(&self, delivery: &Delivery) -> Result<(), Failure> {
        match delivery.subject {
            Subject::TimelineDeliver(_) => self.deliver(delivery).await,
            Subject::TimelineBackfill(_) => self.backfill(delivery).await,
            other => {
                Err(Disposition::term(format_args!("subject {other} is not handled by timeline")).into())
            }
        }
    }

    async fn backfill(&self, delivery: &Delivery) -> Result<(), Failure> {
        let (request, recipients) = decode_backfill(delivery)?;
        let bisect = self.should_bisect(delivery);
        self.backfiller
            .backfill(delivery, &request, &recipients, bisect)
            .await
    }

    /// Writes the post to all timelines, then records and publishes the outcome. Recipients that cause a permanent
    /// error are recorded as dead. Every step is idempotent.
    async fn deliver(&self, delivery: &Delivery) -> Result<(), Failure> {
        let (chunk, recipients) = decode_chunk(delivery)?;
        let count = recipients.len();
        let isolated = isolate(count as usize, self.should_bisect(delivery), |part| {
            self.deliver_part(&chunk, recipients.part(part))
        })
        .instrument(info_span!(
            "timeline write",
            herald.role = "timeline",
            post_id = chunk.post_id,
            recipients = count
        ))
        .await;
        // The oldest count of losses covers all parts.
        let losses = isolated.done.iter().map(|(_, part)| part.losses).min();
        let all_written = isolated.done.iter().all(|(_, part)| part.suppressed.is_empty());
        if isolated.is_complete() && all_written {
            let visible_at = isolated
                .done
                .first()
                .map_or_else(Timestamp::now, |(_, part)| part.visible_at);
            let outcome = Outcome::Delivered { count };
            self.record(&chunk, ExpectedRevision::Any, outcome, visible_at)
                .await?;
            return Ok(self.confirm(losses).await?);
        }
        let is_first_attempt = delivery.attempt == 1 && delivery.redrive.is_none();
        let recorded = self
            .record_partial(&chunk, &recipients, isolated, is_first_attempt)
            .await;
        self.confirm(losses).await?;
        recorded
    }

    /// Fails if timelines were lost since a delivery, which is recorded in the ledger by now: the repair of the loss
    /// may have read the ledger before.
    async fn confirm(&self, losses: Option<u64>) -> Result<(), DeliverError> {
        match losses {
            Some(losses) if !self.timelines.is_intact(losses).await? => Err(DeliverError::Lost),
            _ => Ok(()),
        }
    }

    /// Whether this attempt isolates the recipients that cause a permanent error.
    fn should_bisect(&self, delivery: &Delivery) -> bool {
        delivery.attempt >= self.isolate_attempts_min
    }

    /// Makes the post readable, publishes it to watchers, and waits until it is durable.
    async fn deliver_part(
        &self,
        chunk: &TimelineChunk,
        recipients: Recipients,
    ) -> Result<DeliveredPart, DeliverError> {
        let (post, author) = (PostId(chunk.post_id), UserKey(chunk.author_key));
        let accepted_at = Timestamp(chunk.accepted_at_us);
        let Delivered {
            suppressed,
            durable,
            losses,
        } = self.timelines.deliver(post, recipients.clone()).await?;
        let visible_at = Timestamp::now();
        // Watchers see what their timelines have.
        let written = without_suppressed(&recipients, &suppressed);
        if !written.is_empty() {
            self.metrics
                .observe_visible(visible_at.since(accepted_at), written.len());
            let live = TimelineChunk::new(post, author, accepted_at, &written);
            self.watchers.notify(live).await;
        }
        durable.await?;
        for (reason, users) in &suppressed {
            self.metrics.count_suppressed(*reason, users.len());
        }
        Ok(DeliveredPart {
            visible_at,
            suppressed,
            losses,
        })
    }

    /// Records which recipients have the post and which are suppressed. If a transient error stopped the attempt, no
    /// recipient is recorded as dead because the chunk is redelivered.
    async fn record_partial(
        &self,
        chunk: &TimelineChunk,
        recipients: &Recipients,
        isolated: Isolated<DeliveredPart, DeliverError>,
        is_first_attempt: bool,
    ) -> Result<(), Failure> {
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
            // Nothing is recorded before the first attempt; if something is, the record is refused and the message
            // comes again.
            let recorded = if is_first_attempt {
                None
            } else {
                self.ledger.outcome(post, Channel::Timeline, id).await?
            };
            let base = ExpectedRevision::Revision(recorded.as_ref().map_or(0, |recorded| recorded.revision));
            let before = recorded.as_ref().map(|recorded| &recorded.outcome);
            let at = done
                .first()
                .filter(|_| failed.is_empty() && stopped.is_none())
                .map_or_else(Timestamp::now, |(_, part)| part.visible_at);
            let done = done.into_iter().map(|(range, part)| (range, part.suppressed));
            let failed_indices = failed.iter().map(|(index, _)| *index);
            let outcome = partial_outcome(recipients, before, done.collect(), failed_indices);
            let dead = outcome.counts().dead;
            self.record(chunk, base, outcome, at).await?;
            if let (Some((_, reason)), 1..) = (failed.first(), dead) {
                self.metrics.dead.inc_by(dead.into());
                return Err(Disposition::term(isolated_reason(reason, dead, recipients.len())).into());
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

#[cfg(test)]
mod tests {
    use herald_model::{Lane, UserKey};
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    fn recipients() -> impl Strategy<Value = Recipients> {
        prop::collection::btree_set(any::<u32>(), 0..50)
            .prop_map(|keys| Recipients::from_sorted(keys.into_iter().map(UserKey)))
    }

    fn chunks() -> impl Strategy<Value = TimelineChunk> {
        (recipients(), herald_fuzz::u64s(), herald_fuzz::micros()).prop_map(|(recipients, post, at)| {
            TimelineChunk::new(PostId(post), UserKey(1), Timestamp(at), &recipients)
        })
    }

    fn backfills() -> impl Strategy<Value = Backfill> {
        (recipients(), herald_fuzz::u64s()).prop_map(|(recipients, posts_sequence)| Backfill {
            author_key: 1,
            recipients: recipients.as_bytes().clone(),
            recipient_count: recipients.len(),
            posts_sequence,
        })
    }

    fn is_consistent<T>(decoded: Result<(T, Recipients), Disposition>, claimed: impl Fn(&T) -> u32) -> bool {
        match decoded {
            Ok((message, recipients)) => {
                claimed(&message) == recipients.len()
                    && recipients.iter().count() == recipients.len() as usize
            }
            Err(disposition) => matches!(disposition, Disposition::Term { .. }),
        }
    }

    proptest! {
        #[test]
        fn bytes_near_a_chunk_are_a_chunk_or_terminated(
            payload in herald_fuzz::near(chunks().prop_map(|chunk| chunk.encode_to_vec())),
        ) {
            let subject = Subject::TimelineDeliver(Lane::Low);
            let decoded = decode_chunk(&Delivery::without_consumer(subject, 1, payload));
            prop_assert!(is_consistent(decoded, |chunk| chunk.recipient_count));
        }

        #[test]
        fn bytes_near_a_backfill_are_a_backfill_or_terminated(
            payload in herald_fuzz::near(backfills().prop_map(|backfill| backfill.encode_to_vec())),
        ) {
            let subject = Subject::TimelineBackfill(Lane::Low);
            let decoded = decode_backfill(&Delivery::without_consumer(subject, 1, payload));
            prop_assert!(is_consistent(decoded, |backfill| backfill.recipient_count));
        }
    }
}
