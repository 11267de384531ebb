//! Runs redrives and discards.
//!
//! A redrive is an operation in the store with the list of its dead letters. It claims some of them, publishes them to
//! REDRIVE, records their sequences there ([`send`]), and repeats. A claim begins a new round of the dead letter, for
//! one redrive only. A process that dies between claim and record leaves dead letters in an unknown state: the next
//! process searches REDRIVE for them and publishes only the missing ones ([`recover`]).
//!
//! [`outcomes`] finds out whether a redriven dead letter succeeded.
//!
//! All processes accept operations, and the holder of the lease [`LEASE`] runs them. It finds them in the store
//! ([`found`]), so it also runs those that began in another process or before it got the lease.
//!
//! *Invariant:* a process publishes claimed dead letters only while it holds the lease. The store fences claims; before
//! each message the process compares the end of its lease with its clock. A message that a paused process publishes
//! nevertheless has the message id of its round, and is dropped within the dedupe window.

mod found;
pub(crate) mod outcomes;
mod push_ttl;
mod recover;
mod refusal;
mod send;

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use herald_failure::{Classify as _, panic_reason};
use herald_mesh::{Mesh, Redriven, Subject, consumers::ConsumerKind, streams};
use herald_model::time::Timestamp;
use herald_store::{
    DeadLetter, DeadLetterVersion, DeadLetters, HeldLease, Operation, OperationId, OperationKind,
    OperationState, Step,
};
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    Metrics,
    domain::throttle::{self, RateLimiter},
    error::StepError,
    failure_recorder::FailureRecorder,
    redrive::{found::FoundOperations, outcomes::OutcomeTracker},
};

/// Name of the lease of the process that runs redrives.
pub(crate) const LEASE: &str = "redrive";
/// Dead letters claimed, discarded or read at once. A larger batch would delay the commits of live traffic.
const BATCH: u64 = 128;
/// Interval between two reads of the running operations.
const LIST_INTERVAL: Duration = Duration::from_millis(500);
/// Longest wait for an outcome before the redrive reads its operation again.
const OUTCOME_WAIT_MAX: Duration = Duration::from_millis(100);
/// Delay before the retry of a failed step.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Begins, runs and stops operations. Clones share the connections.
#[derive(Clone)]
pub(crate) struct OperationRunner {
    mesh: Mesh,
    dead_letters: Arc<dyn DeadLetters>,
    recorder: FailureRecorder,
    metrics: Metrics,
    in_flight_max: u64,
    begun: Arc<Notify>,
}

/// Runs the operations of the store while this process holds the lease.
#[derive(Clone)]
struct Leader {
    runner: OperationRunner,
    outcomes: Arc<OutcomeTracker>,
    lease: HeldLease,
    /// Cancelled when the lease is lost or the service stops.
    stop: CancellationToken,
}

/// The kind of consumer and the subject that a dead letter is redriven to; `None` if no consumer handles it.
pub(crate) fn redrive_target(dead_letter: &DeadLetter) -> Option<(ConsumerKind, Subject)> {
    let kind = dead_letter.kind.parse().ok()?;
    let subject = Subject::parse(&dead_letter.subject)?;
    (!subject.is_wildcard()).then_some((kind, subject))
}

impl OperationRunner {
    pub(crate) fn new(
        mesh: Mesh,
        dead_letters: Arc<dyn DeadLetters>,
        recorder: FailureRecorder,
        metrics: Metrics,
        in_flight_max: u64,
    ) -> Self {
        Self {
            mesh,
            dead_letters,
            recorder,
            metrics,
            in_flight_max,
            begun: Arc::default(),
        }
    }

    /// Announces an operation that has begun. If another process holds the lease, it finds the operation at its next
    /// read of the store.
    pub(crate) fn announce(&self) {
        self.begun.notify_one();
    }

    /// Discards the next batch of an operation's dead letters. Any process may do it, also at the same time as another:
    /// the store gives each dead letter to one.
    pub(crate) async fn discard_batch(&self, id: OperationId) -> Result<Operation, StepError> {
        let step = self
            .dead_letters
            .discard(id, BATCH as usize, Timestamp::now())
            .await?;
        self.metrics.discarded.inc_by(step.dead_letters.len() as u64);
        Ok(step.operation)
    }

    /// Runs all running operations, and those that begin, until the lease is lost or the service stops. Then finishes
    /// the batches in progress.
    pub(crate) async fn lead(self, lease: HeldLease) {
        let outcomes = OutcomeTracker::new(
            self.mesh.clone(),
            self.dead_letters.clone(),
            self.recorder.clone(),
            self.metrics.clone(),
        );
        let leader = Leader {
            runner: self,
            outcomes: Arc::new(outcomes),
            stop: lease.lost().clone(),
            lease,
        };
        leader.run().await;
    }
}

impl Leader {
    async fn run(&self) {
        let recover = self.retry("recovering the dead letters of interrupted redrives", || {
            self.recover_interrupted()
        });
        if let Err(error) = recover.await {
            tracing::error!(%error, "dead letters of interrupted redrives can't be recovered; they stay in flight");
        }
        futures::join!(self.outcomes.run(&self.stop), self.run_operations());
    }

    /// Runs a step, and again after each transient error. `None` after a shutdown; the error is permanent.
    async fn retry<T, F: Future<Output = Result<T, StepError>>>(
        &self,
        what: &str,
        step: impl Fn() -> F,
    ) -> Result<Option<T>, StepError> {
        while !self.stop.is_cancelled() {
            match step().await {
                Ok(value) => return Ok(Some(value)),
                Err(error) if error.is_transient() => {
                    tracing::warn!(%error, "{what} failed; retrying");
                    self.pause(RETRY_DELAY).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    async fn run_operations(&self) {
        let mut tasks = JoinSet::new();
        let mut found = FoundOperations::default();
        let mut failing = false;
        while !self.stop.is_cancelled() {
            match self.runner.dead_letters.running().await {
                Ok(running) => {
                    failing = false;
                    for operation in found.take_due(running) {
                        tasks.spawn(self.clone().run_operation(operation));
                    }
                }
                // Logged once for each outage.
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(%error, "can't list the running redrives and discards; retrying");
                }
                Err(_) => {}
            }
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = self.runner.begun.notified() => {}
                () = tokio::time::sleep(LIST_INTERVAL) => {}
            }
            while let Some(ended) = tasks.try_join_next() {
                log_panic(ended);
            }
        }
        while let Some(ended) = tasks.join_next().await {
            log_panic(ended);
        }
    }

    /// Runs an operation until it ends or the service stops. A permanent error or a panic ends it too: no operation is
    /// left running.
    async fn run_operation(self, operation: Operation) {
        let run = async {
            match operation.what.kind {
                OperationKind::Redrive => self.run_redrive(&operation).await,
                OperationKind::Discard => self.run_discard(operation.id).await,
                OperationKind::Cancel => Ok(()),
            }
        };
        let failure = match AssertUnwindSafe(run).catch_unwind().await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic_reason(&*panic),
        };
        tracing::error!(
            operation_id = operation.id.0,
            failure,
            "operation stops; its other dead letters stay open"
        );
        if operation.what.kind == OperationKind::Redrive {
            // Otherwise the next process would send the dead letters that this one has claimed.
            let recover = self.retry("recovering the dead letters of a failed redrive", || {
                self.recover_claimed(operation.id)
            });
            if let Err(error) = recover.await {
                tracing::error!(
                    redrive_id = operation.id.0,
                    %error,
                    "claimed dead letters can't be recovered; they stay in flight"
                );
            }
        }
        let reason = format!("failed: {failure}");
        let stop = self.retry("stopping a failed operation", || {
            self.finish(operation.id, OperationState::Stopped, &reason)
        });
        if let Err(error) = stop.await {
            tracing::error!(operation_id = operation.id.0, %error, "failed operation can't be stopped");
        }
    }

    /// Runs a redrive until it ends or the service stops, and retries steps after transient errors.
    async fn run_redrive(&self, operation: &Operation) -> Result<(), StepError> {
        let id = operation.id;
        let mut limiter = RateLimiter::new(operation.what.rate_max, Instant::now());
        let mut interrupted = false;
        while !self.stop.is_cancelled() {
            let attempt = async {
                if interrupted {
                    self.recover_claimed(id).await?;
                }
                self.send_remaining(id, &mut limiter).await
            };
            match attempt.await {
                Ok(()) => break,
                Err(error) if error.is_transient() => {
                    tracing::warn!(redrive_id = id.0, %error, "redrive step failed; retrying");
                    interrupted = true;
                    self.pause(RETRY_DELAY).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Claims and sends a redrive's dead letters until it ends.
    async fn send_remaining(&self, id: OperationId, limiter: &mut RateLimiter) -> Result<(), StepError> {
        while let Some(step) = self.claim_next(id).await? {
            self.send(&step.operation, step.dead_letters, limiter).await?;
        }
        Ok(())
    }

    /// Waits until the redrive is below its in-flight limit, then claims its next dead letters. `None` when the redrive
    /// has ended or the service stops.
    async fn claim_next(&self, id: OperationId) -> Result<Option<Step>, StepError> {
        while !self.stop.is_cancelled() {
            let Some(operation) = self.runner.dead_letters.operation(id).await? else {
                return Ok(None);
            };
            if operation.state != OperationState::Running {
                return Ok(None);
            }
            if throttle::failure_limit_reached(&operation) {
                let reason = format!("{} dead letters failed again", operation.failed);
                self.finish(id, OperationState::Stopped, &reason).await?;
                return Ok(None);
            }
            if operation.reached >= operation.selected {
                self.finish(id, OperationState::Done, "").await?;
                return Ok(None);
            }
            let capacity = throttle::in_flight_max(&operation, self.runner.in_flight_max)
                .saturating_sub(operation.in_flight());
            if capacity == 0 {
                self.outcomes.wait_for_outcome(OUTCOME_WAIT_MAX).await;
                continue;
            }
            let count = throttle::claim_size(
                operation.what.rate_max,
                capacity.min(BATCH).min(operation.selected - operation.reached),
            );
            // Claimed dead letters that aren't recorded as sent can only be in REDRIVE after this sequence.
            let after = self.runner.mesh.last_sequence(streams::REDRIVE).await?;
            let step = self
                .runner
                .dead_letters
                .claim(id, count as usize, after, Timestamp::now(), self.lease.fence())
                .await?;
            return Ok(Some(step));
        }
        Ok(None)
    }

    async fn finish(&self, id: OperationId, state: OperationState, reason: &str) -> Result<(), StepError> {
        let operation = self
            .runner
            .dead_letters
            .finish(id, state, reason, Timestamp::now())
            .await?;
        tracing::info!(
            operation_id = id.0,
            dead_letters = operation.selected,
            applied = operation.applied(),
            failed = operation.failed,
            expired = operation.expired,
            reason,
            "operation ended"
        );
        Ok(())
    }

    /// Runs a discard until it ends or the service stops, and retries steps after transient errors.
    async fn run_discard(&self, id: OperationId) -> Result<(), StepError> {
        while let Some(operation) = self
            .retry("discarding dead letters", || self.runner.discard_batch(id))
            .await?
            && operation.state == OperationState::Running
        {}
        Ok(())
    }

    async fn pause(&self, time: Duration) {
        self.stop.run_until_cancelled(tokio::time::sleep(time)).await;
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "an operation panicked while it was stopped; the next holder of the lease resumes it");
    }
}

fn to_version(dead_letter: &DeadLetter) -> DeadLetterVersion {
    DeadLetterVersion {
        id: dead_letter.id,
        round: dead_letter.round,
    }
}

fn to_redriven(dead_letter: &DeadLetter) -> Redriven {
    Redriven {
        dead_letter: dead_letter.id.0,
        round: dead_letter.round,
    }
}
