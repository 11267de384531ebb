//! Handles one chunk, from the message to its disposition.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use herald_mesh::{Delivery, Disposition, Handler, Mesh, Subject, Wait};
use herald_model::{Channel, ChunkId, Lane, PostId, Recipients, UserKey, time::Timestamp};
use herald_posts::PostReader;
use herald_proto::{mesh_v1, v1};
use herald_runtime::wait::Waiting;
use herald_store::{Devices, Ledger, Preferences, Users};
use prost::Message as _;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, field, instrument, warn};

use crate::{
    Config, Metrics,
    adapters::Dispatcher,
    chunk_lock::ChunkLocks,
    domain::{Progress, WAKE_INTERVAL, Wake},
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
    /// By lane: how many more chunks may wait for slow devices without a place among the chunks in flight.
    pub(crate) slow_chunks: [Semaphore; Lane::ALL.len()],
    pub(crate) waiting: Waiting,
    pub(crate) metrics: Metrics,
    pub(crate) config: Config,
    /// Ends the waits of chunks.
    pub(crate) stop: CancellationToken,
}

/// Bounds of the delay between two attempts at a chunk that waits for the store; it doubles.
const WAIT_MIN: Duration = Duration::from_millis(200);
const WAIT_MAX: Duration = Duration::from_secs(2);

/// Bound of the lease of a claim, as a multiple of the configured one.
const LEASE_FACTOR_MAX: u32 = 16;

/// Maximum generation of a message. A chunk doesn't live long enough for so many copies, and the next generation must
/// fit.
const RETRY_GENERATION_MAX: u32 = u32::MAX / 2;

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
    /// 0 for the message of fan-out; greater for each copy that continues with recipients that waited.
    pub(crate) generation: u32,
    message: mesh_v1::PushChunk,
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
        let recipients = Recipients::decode(message.recipients.clone(), message.recipient_count)
            .map_err(|e| Disposition::term(format_args!("malformed recipients: {e}")))?;
        if message.retry_generation > RETRY_GENERATION_MAX {
            return Err(Disposition::term(format_args!(
                "malformed retry generation {}: at most {RETRY_GENERATION_MAX} copies of a chunk are made",
                message.retry_generation
            )));
        }
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
            generation: message.retry_generation,
            message,
        })
    }
}

impl PushHandler {
    /// Sends, records and publishes. While another worker has claimed the chunk, or the store is away, the message waits
    /// here: heartbeats keep it, and it spends no attempt. The caller settles the message.
    ///
    /// A claim can end before its pushes are sent because the store answers slowly. The next claim lasts twice as long:
    /// with the same lease, a store that is always so slow would never let a push be sent.
    #[instrument(
        name = "push send",
        skip_all,
        fields(
            herald.role = "push",
            post_id = chunk.post.0,
            chunk_id = %chunk.id,
            recipients = chunk.recipients.len(),
            generation = chunk.generation,
            failed_hosts = field::Empty,
            failure_reasons = field::Empty
        )
    )]
    async fn deliver(&self, chunk: &Chunk, delivery: &Delivery) -> Result<Disposition, AttemptError> {
        let lease = self.config.claim_lease();
        let mut own_lease = lease;
        let started = Instant::now();
        let (mut slow_chunk, mut waiting) = (None, None);
        let mut delay = WAIT_MIN;
        loop {
            let error = match self.deliver_once(chunk, delivery, own_lease).await {
                Err(error) if error.is_wait() => error,
                done => return done,
            };
            if matches!(error, AttemptError::ClaimEnded) {
                self.metrics.count_claim("lost");
                own_lease = (2 * own_lease).min(LEASE_FACTOR_MAX * lease);
            }
            let pause = if error.is_claimed() {
                lease / 10
            } else {
                delay = (2 * delay).min(WAIT_MAX);
                delay / 2
            };
            if error.is_store_away() {
                waiting.get_or_insert_with(|| self.waiting.begin(&error));
            }
            debug!(%error, post_id = chunk.post.0, chunk_id = %chunk.id, "chunk waits");
            // The other worker is alive and slow: this chunk must not take the place of another one.
            if error.is_claimed()
                && slow_chunk.is_none()
                && started.elapsed() > lease
                && let Ok(permit) = self.slow_chunks[chunk.lane as usize].try_acquire()
            {
                slow_chunk = Some(permit);
                delivery.release_slot();
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = self.stop.cancelled() => return Err(AttemptError::Stopped),
            }
        }
    }

    /// Sends, then records in the ledger, then publishes the event.
    async fn deliver_once(
        &self,
        chunk: &Chunk,
        delivery: &Delivery,
        lease: Duration,
    ) -> Result<Disposition, AttemptError> {
        let recorded = self.ledger.outcome(chunk.post, Channel::Push, chunk.id).await?;
        let mut progress = Progress::resume(&chunk.recipients, recorded, chunk.generation, chunk.expires_at);
        let recorded_counts = progress.counts();
        if delivery.redrive.is_some_and(|redriven| redriven.revives()) {
            progress.revive_dead();
        }
        let before = progress.counts();
        // Before the first record there is no claim either, and a record at revision 0 is refused once there is one.
        let mut claim = None;
        if progress.is_pending() && progress.revision() > 0 {
            claim = Some(self.claim(chunk, &mut progress, lease).await?);
        }
        let bisect = delivery.attempt >= self.config.isolate_attempts_min;
        let attempted = self
            .attempt(chunk, delivery, &mut progress, (&mut claim, lease), bisect)
            .await;
        log_failures(chunk, &progress);
        let mut wake = None;
        if attempted.is_ok() && progress.is_pending() {
            if delivery.can_wait().await {
                wake = progress.next_wake(Timestamp::now());
            } else if delivery.is_last_attempt() {
                progress.settle_all_pending();
            }
        }
        if progress.is_changed() {
            // Recorded after a failure too: accepted pushes must not be sent again.
            self.record_at_last(chunk, &mut progress).await?;
        } else if claim.is_some() {
            self.release_claim(chunk, &progress).await;
        }
        self.metrics.count_settled(chunk.lane, progress.counts() - before);
        attempted?;
        // A chunk without pending recipients always publishes: an earlier attempt may have crashed between record and
        // event.
        if progress.counts() != recorded_counts || (progress.revision() > 0 && !progress.is_pending()) {
            self.publish_settled(chunk, &progress).await?;
        }
        Ok(disposition(chunk, &progress, wake))
    }

    /// Records the progress and ends the claim. While the store is away, it waits with the pushes that were accepted,
    /// until the service is stopped for good: only this task knows of them.
    async fn record_at_last(&self, chunk: &Chunk, progress: &mut Progress) -> Result<(), AttemptError> {
        let mut delay = WAIT_MIN;
        loop {
            match self.record(chunk, progress, None).await {
                Err(error) if error.is_store_away() && progress.unrecorded() > 0 => {
                    warn!(%error, post_id = chunk.post.0, chunk_id = %chunk.id, accepted = progress.unrecorded(), "accepted pushes can't be recorded yet; retrying");
                }
                done => return done,
            }
            sleep(delay).await;
            delay = (2 * delay).min(WAIT_MAX);
        }
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

/// How the message of a chunk ends. Each dead recipient must be covered by a dead letter, also while others still wait.
fn disposition(chunk: &Chunk, progress: &Progress, wake: Option<Wake>) -> Disposition {
    let failed = progress
        .dead_reason()
        .map(|failures| format!("push failed: {failures}"));
    let pending = || {
        let failures = progress.failures().reason(chunk.recipients.len() as usize);
        format!("push is pending: {failures}")
    };
    match (wake, failed) {
        (Some(wake), failed) => {
            let copy = mesh_v1::PushChunk {
                retry_generation: wake.generation,
                expires_at_us: progress.expires_at().0,
                ..chunk.message.clone()
            };
            Disposition::Wait(Wait {
                after: wake.after,
                number: wake.generation,
                payload: Some(copy.encode_to_vec().into()),
                reason: pending(),
                failed,
            })
        }
        // The delay queue can't take the chunk, so its consumer holds it.
        (None, _) if progress.is_pending() => Disposition::Retry {
            after: Some(progress.wake_after(Timestamp::now()).unwrap_or(WAKE_INTERVAL)),
            reason: pending(),
        },
        (None, Some(reason)) => Disposition::Term { reason },
        (None, None) => Disposition::Ack,
    }
}

/// Logs the failures of an attempt and adds them to its span: one line, however many devices failed.
fn log_failures(chunk: &Chunk, progress: &Progress) {
    let failures = progress.failures();
    if failures.count() == 0 {
        return;
    }
    let (hosts, devices, reasons) = (failures.hosts(), failures.devices(), failures.reasons());
    tracing::Span::current()
        .record("failed_hosts", &hosts)
        .record("failure_reasons", &reasons);
    warn!(
        post_id = chunk.post.0,
        chunk_id = %chunk.id,
        lane = chunk.lane.as_str(),
        generation = chunk.generation,
        failed = failures.count(),
        hosts,
        devices,
        reasons,
        "pushes to some devices failed"
    );
}

#[cfg(test)]
mod tests {
    use herald_proto::mesh_v1::PushChunk;
    use proptest::prelude::*;

    use super::*;

    fn chunks() -> impl Strategy<Value = PushChunk> {
        let recipients = prop::collection::btree_set(any::<u32>(), 0..50);
        let times = (herald_fuzz::micros(), herald_fuzz::micros());
        (recipients, times, herald_fuzz::u64s(), herald_fuzz::u32s()).prop_map(
            |(recipients, (accepted, expires), post, generation)| PushChunk {
                retry_generation: generation,
                ..PushChunk::new(
                    PostId(post),
                    UserKey(generation),
                    Timestamp(accepted),
                    Timestamp(expires),
                    &Recipients::from_sorted(recipients.into_iter().map(UserKey)),
                )
            },
        )
    }

    fn decode(payload: Vec<u8>) -> Result<Chunk, Disposition> {
        Chunk::decode(&Delivery::without_consumer(
            Subject::PushDeliver(Lane::High),
            1,
            payload,
        ))
    }

    proptest! {
        #[test]
        fn bytes_near_a_chunk_are_a_valid_chunk_or_terminated(
            payload in herald_fuzz::near(chunks().prop_map(|chunk| chunk.encode_to_vec())),
            now in herald_fuzz::micros(),
        ) {
            match decode(payload) {
                Err(disposition) => {
                    let is_terminated = matches!(disposition, Disposition::Term { .. });
                    prop_assert!(is_terminated);
                }
                Ok(chunk) => {
                    prop_assert_eq!(chunk.recipients.chunk_id(), chunk.id);
                    let mut progress = Progress::resume(&chunk.recipients, None, chunk.generation, chunk.expires_at);
                    let wake = progress.next_wake(Timestamp(now));
                    prop_assert_eq!(wake.is_none(), chunk.recipients.is_empty());
                    prop_assert!(wake.is_none_or(|wake| wake.generation > chunk.generation));
                }
            }
        }

        #[test]
        fn a_chunk_is_decoded_as_it_was_made(chunk in chunks()) {
            let decoded = decode(chunk.encode_to_vec());
            if chunk.retry_generation > RETRY_GENERATION_MAX {
                let is_terminated = matches!(decoded, Err(Disposition::Term { .. }));
                prop_assert!(is_terminated);
            } else {
                prop_assert_eq!(decoded.unwrap().message, chunk);
            }
        }
    }
}
