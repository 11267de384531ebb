//! Tracks the outcomes of redriven dead letters.
//!
//! A redriven message that fails again causes an advisory and a DLQ entry, and the index reopens its dead letter. A
//! message that succeeds only raises the acknowledgement floor of its consumer. A failed message raises the floor too.
//! So before a dead letter is resolved, the tracker waits until all advisories and DLQ entries up to that moment are
//! handled. An advisory that arrives later still reopens its dead letter.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use herald_mesh::{
    Mesh,
    consumers::{self, ConsumerKind},
    streams,
};
use herald_model::time::Timestamp;
use herald_store::{Cause, DeadLetterVersion, DeadLetters, Reopening};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{Metrics, domain::fingerprint, error::StepError, failure_recorder::FailureRecorder};

/// Interval between two reads of the acknowledgement floors while dead letters are in flight.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Time for an advisory to reach its stream after the floor has passed its message.
const ADVISORY_GRACE: Duration = Duration::from_millis(50);
/// Longest wait for advisories and DLQ entries.
const CATCH_UP_MAX: Duration = Duration::from_secs(10);
/// Dead letters resolved by one commit. A larger commit would delay fan-out, which waits for the same fsync.
const RESOLVED_PER_COMMIT: usize = 128;
/// Delay before the retry of a failed step.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The reason of a dead letter whose message was removed from REDRIVE.
const REMOVED_REASON: &str = "removed from REDRIVE before it was acknowledged";

/// The dead letters in flight.
pub(crate) struct OutcomeTracker {
    mesh: Mesh,
    dead_letters: Arc<dyn DeadLetters>,
    recorder: FailureRecorder,
    metrics: Metrics,
    /// By kind of consumer and by sequence in REDRIVE.
    in_flight: Mutex<BTreeMap<ConsumerKind, BTreeMap<u64, DeadLetterVersion>>>,
    tracked: Notify,
    settled: Notify,
}

impl OutcomeTracker {
    pub(super) fn new(
        mesh: Mesh,
        dead_letters: Arc<dyn DeadLetters>,
        recorder: FailureRecorder,
        metrics: Metrics,
    ) -> Self {
        Self {
            mesh,
            dead_letters,
            recorder,
            metrics,
            in_flight: Mutex::default(),
            tracked: Notify::new(),
            settled: Notify::new(),
        }
    }

    /// Tracks sent dead letters, each with its sequence in REDRIVE.
    pub(super) fn track(
        &self,
        dead_letters: impl IntoIterator<Item = (DeadLetterVersion, ConsumerKind, u64)>,
    ) {
        let mut in_flight = self.in_flight.lock();
        for (dead_letter, kind, sequence) in dead_letters {
            in_flight.entry(kind).or_default().insert(sequence, dead_letter);
        }
        drop(in_flight);
        self.tracked.notify_one();
    }

    /// Waits until an outcome is recorded, at most `wait_max`.
    pub(super) async fn wait_for_outcome(&self, wait_max: Duration) {
        let _ = tokio::time::timeout(wait_max, self.settled.notified()).await;
    }

    /// Records outcomes until the shutdown.
    pub(super) async fn run(&self, stop: &CancellationToken) {
        let run = async {
            loop {
                while self.in_flight.lock().values().all(BTreeMap::is_empty) {
                    self.tracked.notified().await;
                }
                tokio::time::sleep(POLL_INTERVAL).await;
                if let Err(error) = self.resolve_acknowledged().await {
                    tracing::warn!(%error, "can't record the outcomes of redrives; retrying");
                    tokio::time::sleep(RETRY_DELAY).await;
                }
            }
        };
        stop.run_until_cancelled(run).await;
    }

    /// Resolves the dead letters below the acknowledgement floors, and reopens those removed from REDRIVE.
    async fn resolve_acknowledged(&self) -> Result<(), StepError> {
        let kinds: Vec<ConsumerKind> = {
            let in_flight = self.in_flight.lock();
            in_flight
                .iter()
                .filter(|(_, dead_letters)| !dead_letters.is_empty())
                .map(|(kind, _)| *kind)
                .collect()
        };
        let mut acknowledged = Vec::new();
        for kind in kinds {
            let floor = self
                .mesh
                .ack_floor(streams::REDRIVE, consumers::redrive(kind))
                .await?;
            let in_flight = self.in_flight.lock();
            let dead_letters = in_flight.get(&kind).into_iter().flatten();
            acknowledged.extend(
                dead_letters
                    .take_while(|(sequence, _)| **sequence <= floor)
                    .map(|(sequence, dead_letter)| (kind, *sequence, *dead_letter)),
            );
        }
        if acknowledged.is_empty() {
            return Ok(());
        }
        self.wait_for_failures().await;
        let removed = self.find_removed(&acknowledged).await?;
        for dead_letter in &removed {
            self.recorder.reopen_removed(&reopening(*dead_letter)).await?;
        }
        let succeeded: Vec<DeadLetterVersion> = acknowledged
            .iter()
            .map(|(_, _, dead_letter)| *dead_letter)
            .filter(|dead_letter| !removed.contains(dead_letter))
            .collect();
        for batch in succeeded.chunks(RESOLVED_PER_COMMIT) {
            let resolved = self.dead_letters.resolve(batch, Timestamp::now()).await?;
            self.metrics.resolved.inc_by(resolved);
        }
        let mut in_flight = self.in_flight.lock();
        for (kind, sequence, _) in &acknowledged {
            if let Some(dead_letters) = in_flight.get_mut(kind) {
                dead_letters.remove(sequence);
            }
        }
        drop(in_flight);
        self.settled.notify_waiters();
        Ok(())
    }

    /// Waits until all failures up to now are in the store, at most [`CATCH_UP_MAX`].
    async fn wait_for_failures(&self) {
        let catch_up = async {
            tokio::time::sleep(ADVISORY_GRACE).await;
            for (stream, consumer) in [
                (streams::ADVISORIES, consumers::DEADLETTER),
                (streams::DLQ, consumers::DEAD_LETTERS),
            ] {
                let last = self.mesh.last_sequence(stream).await?;
                while self.mesh.ack_floor(stream, consumer).await? < last {
                    tokio::time::sleep(ADVISORY_GRACE / 5).await;
                }
            }
            Ok::<_, StepError>(())
        };
        match tokio::time::timeout(CATCH_UP_MAX, catch_up).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "can't read the acknowledgement floors of ADVISORIES and DLQ");
            }
            Err(_) => tracing::warn!(
                "failures in ADVISORIES or DLQ are not handled in time; a resolved dead letter may be reopened later"
            ),
        }
    }

    /// Finds the dead letters that are no longer in REDRIVE. Stream limits remove the oldest messages first, so the
    /// search ends at the first message found.
    async fn find_removed(
        &self,
        acknowledged: &[(ConsumerKind, u64, DeadLetterVersion)],
    ) -> Result<Vec<DeadLetterVersion>, StepError> {
        let mut in_order: Vec<_> = acknowledged.iter().collect();
        in_order.sort_unstable_by_key(|(_, sequence, _)| *sequence);
        let mut removed = Vec::new();
        for (_, sequence, dead_letter) in in_order {
            if self.mesh.message(streams::REDRIVE, *sequence).await?.is_some() {
                break;
            }
            removed.push(*dead_letter);
        }
        Ok(removed)
    }
}

fn reopening(dead_letter: DeadLetterVersion) -> Reopening {
    let cause = Cause::Removed;
    Reopening {
        dead_letter: dead_letter.id,
        round: dead_letter.round,
        cause,
        reason: REMOVED_REASON.into(),
        group: fingerprint::group(streams::REDRIVE, cause, REMOVED_REASON),
        group_reason: REMOVED_REASON.into(),
        failed_at: Timestamp::now(),
    }
}
