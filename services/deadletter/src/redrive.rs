//! Runs redrives and discards.
//!
//! A redrive is an operation in the store with the list of its dead letters. It claims some of them, publishes them to
//! REDRIVE, records their sequences there ([`send`]), and repeats. A claim begins a new round of the dead letter, for
//! one redrive only. A process that dies between claim and record leaves dead letters in an unknown state: the next
//! process searches REDRIVE for them and publishes only the missing ones.
//!
//! [`outcomes`] finds out whether a redriven dead letter succeeded.

pub(crate) mod outcomes;
mod push_ttl;
mod refusal;
mod send;

use std::{
    collections::{HashMap, HashSet},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt as _, TryStreamExt as _};
use herald_failure::{Classify as _, panic_reason};
use herald_mesh::{Mesh, Redriven, Subject, consumers::ConsumerKind, streams};
use herald_model::time::Timestamp;
use herald_store::{
    DeadLetter, DeadLetterFilter, DeadLetterState, DeadLetterVersion, DeadLetters, Operation, OperationId,
    OperationKind, OperationState, Order, Step,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    Metrics,
    domain::throttle::{self, RateLimiter},
    error::StepError,
    failure_recorder::FailureRecorder,
    lease::Lease,
    redrive::outcomes::OutcomeTracker,
};

/// Dead letters claimed, discarded or read at once. A larger batch would delay the commits of live traffic.
const BATCH: u64 = 128;
/// Operations in the queue between the gRPC server and the runner.
const QUEUE_MAX: usize = 64;
/// Longest wait for an outcome before the redrive reads its operation again.
const OUTCOME_WAIT_MAX: Duration = Duration::from_millis(100);
/// Delay before the retry of a failed step.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Runs operations in the background. Clones share the queue.
#[derive(Clone)]
pub(crate) struct OperationRunner {
    mesh: Mesh,
    dead_letters: Arc<dyn DeadLetters>,
    outcomes: Arc<OutcomeTracker>,
    metrics: Metrics,
    in_flight_max: u64,
    lease: Arc<Lease>,
    queue: mpsc::Sender<Operation>,
    stop: CancellationToken,
}

/// The kind of consumer and the subject that a dead letter is redriven to; `None` if no consumer handles it.
pub(crate) fn redrive_target(dead_letter: &DeadLetter) -> Option<(ConsumerKind, Subject)> {
    let kind = dead_letter.kind.parse().ok()?;
    let subject = Subject::parse(&dead_letter.subject)?;
    (!subject.is_wildcard()).then_some((kind, subject))
}

impl OperationRunner {
    /// Creates a runner and its queue, which [`run`](Self::run) reads.
    pub(crate) fn new(
        mesh: Mesh,
        dead_letters: Arc<dyn DeadLetters>,
        recorder: FailureRecorder,
        metrics: Metrics,
        in_flight_max: u64,
        lease: Arc<Lease>,
        stop: CancellationToken,
    ) -> (Self, mpsc::Receiver<Operation>) {
        let outcomes = OutcomeTracker::new(mesh.clone(), dead_letters.clone(), recorder, metrics.clone());
        let (sender, queue) = mpsc::channel(QUEUE_MAX);
        let runner = Self {
            outcomes: Arc::new(outcomes),
            mesh,
            dead_letters,
            metrics,
            in_flight_max,
            lease,
            queue: sender,
            stop,
        };
        (runner, queue)
    }

    /// Queues an operation. During the shutdown it isn't queued: the next start resumes it from the store.
    pub(crate) async fn enqueue(&self, operation: &Operation) {
        let _ = self.queue.send(operation.clone()).await;
    }

    /// Resumes the operations of earlier processes and runs the queued ones until the shutdown, then finishes the
    /// batches in progress.
    pub(crate) async fn run(&self, queue: mpsc::Receiver<Operation>) {
        if !self.lease.acquire(&self.stop).await {
            return;
        }
        // Kept until the batches in progress have ended.
        let running = std::pin::pin!(self.run_holding_lease(queue));
        let keeping = std::pin::pin!(self.lease.keep());
        futures::future::select(running, keeping).await;
        self.lease.release().await;
    }

    async fn run_holding_lease(&self, queue: mpsc::Receiver<Operation>) {
        let recover = self.retry("recovering the dead letters of interrupted redrives", || {
            self.recover_interrupted()
        });
        if let Err(error) = recover.await {
            tracing::error!(%error, "dead letters of interrupted redrives can't be recovered; they stay in flight");
        }
        let list = self.retry("listing the running operations", async || {
            Ok(self.dead_letters.running().await?)
        });
        let resumed = match list.await {
            Ok(running) => running.unwrap_or_default(),
            Err(error) => {
                tracing::error!(%error, "the operations of an earlier process can't be resumed");
                Vec::new()
            }
        };
        futures::join!(self.outcomes.run(&self.stop), self.run_operations(resumed, queue));
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

    async fn run_operations(&self, resumed: Vec<Operation>, mut queue: mpsc::Receiver<Operation>) {
        let mut running = JoinSet::new();
        for operation in resumed {
            running.spawn(self.clone().run_operation(operation));
        }
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                Some(operation) = queue.recv() => {
                    running.spawn(self.clone().run_operation(operation));
                }
                Some(ended) = running.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "an operation panicked while it was stopped; it resumes at the next start");
                    }
                }
            }
        }
        while running.join_next().await.is_some() {}
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

    /// Tracks or recovers the dead letters that earlier processes left in flight.
    async fn recover_interrupted(&self) -> Result<(), StepError> {
        let mut unsent: HashMap<OperationId, Vec<DeadLetter>> = HashMap::new();
        self.for_each_in_flight(
            |dead_letter| match (redrive_target(&dead_letter), dead_letter.redrive) {
                (Some((kind, _)), _) if dead_letter.redrive_sequence != 0 => {
                    self.outcomes
                        .track([(to_version(&dead_letter), kind, dead_letter.redrive_sequence)]);
                }
                (_, Some(operation)) => unsent.entry(operation).or_default().push(dead_letter),
                (_, None) => {}
            },
        )
        .await?;
        for (operation, dead_letters) in unsent {
            tracing::info!(
                redrive_id = operation.0,
                dead_letters = dead_letters.len(),
                "redrive was interrupted; searching REDRIVE for its claimed dead letters"
            );
            self.recover(operation, dead_letters).await?;
        }
        Ok(())
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
            let Some(operation) = self.dead_letters.operation(id).await? else {
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
            let capacity =
                throttle::in_flight_max(&operation, self.in_flight_max).saturating_sub(operation.in_flight());
            if capacity == 0 {
                self.outcomes.wait_for_outcome(OUTCOME_WAIT_MAX).await;
                continue;
            }
            let count = throttle::claim_size(
                operation.what.rate_max,
                capacity.min(BATCH).min(operation.selected - operation.reached),
            );
            // Claimed dead letters that aren't recorded as sent can only be in REDRIVE after this sequence.
            let after = self.mesh.last_sequence(streams::REDRIVE).await?;
            let step = self
                .dead_letters
                .claim(id, count as usize, after, Timestamp::now(), &self.lease.fence())
                .await?;
            return Ok(Some(step));
        }
        Ok(None)
    }

    async fn finish(&self, id: OperationId, state: OperationState, reason: &str) -> Result<(), StepError> {
        let operation = self
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

    /// Recovers the claimed dead letters of a redrive that aren't recorded as sent.
    async fn recover_claimed(&self, operation: OperationId) -> Result<(), StepError> {
        let mut unrecorded = Vec::new();
        self.for_each_in_flight(|dead_letter| {
            if dead_letter.redrive == Some(operation) && dead_letter.redrive_sequence == 0 {
                unrecorded.push(dead_letter);
            }
        })
        .await?;
        self.recover(operation, unrecorded).await
    }

    /// Searches REDRIVE for dead letters that may have been published: records the ones found and sends the others.
    async fn recover(&self, operation: OperationId, dead_letters: Vec<DeadLetter>) -> Result<(), StepError> {
        if dead_letters.is_empty() {
            return Ok(());
        }
        let Some(redrive) = self.dead_letters.operation(operation).await? else {
            tracing::error!(
                redrive_id = operation.0,
                dead_letters = dead_letters.len(),
                "the redrive of claimed dead letters is unknown; they stay in flight"
            );
            return Ok(());
        };
        let after = redrive.redrive_after;
        let claimed: HashSet<_> = dead_letters.iter().map(to_redriven).collect();
        let last = self.mesh.last_sequence(streams::REDRIVE).await?;
        let mut sequences = HashMap::new();
        if last > after {
            let messages = self.mesh.scan(streams::REDRIVE, None, after + 1, last);
            let mut messages = std::pin::pin!(messages);
            while let Some(message) = messages.try_next().await? {
                if let Some(redriven) = message.redriven().filter(|redriven| claimed.contains(redriven)) {
                    sequences.entry(redriven).or_insert(message.sequence);
                }
            }
        }
        let mut sent = Vec::new();
        let mut unsent = Vec::new();
        for dead_letter in dead_letters {
            match (
                sequences.get(&to_redriven(&dead_letter)),
                redrive_target(&dead_letter),
            ) {
                (Some(sequence), Some((kind, _))) => sent.push((to_version(&dead_letter), kind, *sequence)),
                _ => unsent.push(dead_letter),
            }
        }
        self.record_sent(operation, sent).await?;
        let mut limiter = RateLimiter::new(redrive.what.rate_max, Instant::now());
        self.send(&redrive, unsent, &mut limiter).await
    }

    /// Passes each dead letter in state `Redriving` to `visit`, without keeping them.
    async fn for_each_in_flight(&self, mut visit: impl FnMut(DeadLetter)) -> Result<(), StepError> {
        let filter = DeadLetterFilter {
            state: Some(DeadLetterState::Redriving),
            ..DeadLetterFilter::default()
        };
        let mut after = None;
        loop {
            let page = self
                .dead_letters
                .scan(&filter, Order::OldestFirst, after, BATCH as usize)
                .await?;
            page.dead_letters.into_iter().for_each(&mut visit);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Runs a discard until it ends or the service stops, and retries steps after transient errors.
    async fn run_discard(&self, id: OperationId) -> Result<(), StepError> {
        while let Some(operation) = self
            .retry("discarding dead letters", || self.discard_batch(id))
            .await?
            && operation.state == OperationState::Running
        {}
        Ok(())
    }

    /// Discards the next batch of an operation's dead letters.
    pub(crate) async fn discard_batch(&self, id: OperationId) -> Result<Operation, StepError> {
        let step = self
            .dead_letters
            .discard(id, BATCH as usize, Timestamp::now())
            .await?;
        self.metrics.discarded.inc_by(step.dead_letters.len() as u64);
        self.metrics
            .set_open(self.dead_letters.count(DeadLetterState::Open).await?);
        Ok(step.operation)
    }

    async fn pause(&self, time: Duration) {
        self.stop.run_until_cancelled(tokio::time::sleep(time)).await;
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
