//! Runs redrives and discards.
//!
//! A redrive is an operation in the store with the list of its dead letters. It claims some of them, publishes them to
//! REDRIVE, records their sequences there ([`send`]), and repeats. A claim begins a new round of the dead letter, for
//! one redrive only. A process that dies between claim and record leaves dead letters in an unknown state: the next
//! process searches REDRIVE for them and publishes only the missing ones.
//!
//! [`outcomes`] finds out whether a redriven dead letter succeeded.

pub(crate) mod outcomes;
mod refusal;
mod send;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::TryStreamExt as _;
use herald_mesh::{Mesh, Redriven, Subject, consumers::ConsumerKind, streams};
use herald_model::time::Timestamp;
use herald_store::{
    DeadLetter, DeadLetterFilter, DeadLetterState, DeadLetterVersion, DeadLetters, Operation, OperationId,
    OperationKind, OperationState, Order,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    Metrics,
    domain::throttle::{self, RateLimiter},
    error::StepError,
    failure_recorder::FailureRecorder,
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
        let resumed = loop {
            match self.resume().await {
                Ok(resumed) => break resumed,
                Err(error) => {
                    tracing::warn!(%error, "can't resume the redrives of an earlier process; retrying");
                    self.pause(RETRY_DELAY).await;
                }
            }
            if self.stop.is_cancelled() {
                return;
            }
        };
        futures::join!(self.outcomes.run(&self.stop), self.run_operations(resumed, queue));
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
                        tracing::error!(%error, "an operation panicked; it resumes at the next start");
                    }
                }
            }
        }
        while running.join_next().await.is_some() {}
    }

    async fn run_operation(self, operation: Operation) {
        match operation.what.kind {
            OperationKind::Redrive => {
                let limiter = RateLimiter::new(operation.what.rate_max, Instant::now());
                self.run_redrive(operation.id, limiter).await;
            }
            OperationKind::Discard => self.run_discard(operation.id).await,
            OperationKind::Cancel => {}
        }
    }

    /// Tracks or recovers the dead letters that earlier processes left in flight, and returns the running operations.
    async fn resume(&self) -> Result<Vec<Operation>, StepError> {
        let mut unsent: HashMap<OperationId, Vec<DeadLetter>> = HashMap::new();
        for dead_letter in self.dead_letters_in_flight().await? {
            match (redrive_target(&dead_letter), dead_letter.redrive) {
                (Some((kind, _)), _) if dead_letter.redrive_sequence != 0 => {
                    self.outcomes
                        .track([(to_version(&dead_letter), kind, dead_letter.redrive_sequence)]);
                }
                (_, Some(operation)) => unsent.entry(operation).or_default().push(dead_letter),
                (_, None) => {}
            }
        }
        for (operation, dead_letters) in unsent {
            tracing::info!(
                redrive_id = operation.0,
                dead_letters = dead_letters.len(),
                "redrive was interrupted; searching REDRIVE for its claimed dead letters"
            );
            self.recover(operation, dead_letters).await?;
        }
        Ok(self.dead_letters.running().await?)
    }

    /// Runs a redrive until it ends or the service stops, and retries failed steps.
    async fn run_redrive(&self, id: OperationId, mut limiter: RateLimiter) {
        let mut interrupted = false;
        while !self.stop.is_cancelled() {
            let attempt = async {
                if interrupted {
                    self.recover_claimed(id).await?;
                }
                self.send_remaining(id, &mut limiter).await
            };
            match attempt.await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(redrive_id = id.0, %error, "redrive step failed; retrying");
                    interrupted = true;
                    self.pause(RETRY_DELAY).await;
                }
            }
        }
    }

    /// Claims and sends a redrive's dead letters until it ends.
    async fn send_remaining(&self, id: OperationId, limiter: &mut RateLimiter) -> Result<(), StepError> {
        while let Some(dead_letters) = self.claim_next(id).await? {
            self.send(id, dead_letters, limiter).await?;
        }
        Ok(())
    }

    /// Waits until the redrive is below its in-flight limit, then claims its next dead letters. `None` when the redrive
    /// has ended or the service stops.
    async fn claim_next(&self, id: OperationId) -> Result<Option<Vec<DeadLetter>>, StepError> {
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
                .claim(id, count as usize, after, Timestamp::now())
                .await?;
            return Ok(Some(step.dead_letters));
        }
        Ok(None)
    }

    async fn finish(&self, id: OperationId, state: OperationState, reason: &str) -> Result<(), StepError> {
        let operation = self
            .dead_letters
            .finish(id, state, reason, Timestamp::now())
            .await?;
        tracing::info!(
            redrive_id = id.0,
            dead_letters = operation.selected,
            sent = operation.applied(),
            failed = operation.failed,
            reason,
            "redrive ended"
        );
        Ok(())
    }

    /// Recovers the claimed dead letters of a redrive that aren't recorded as sent.
    async fn recover_claimed(&self, operation: OperationId) -> Result<(), StepError> {
        let unrecorded = |dead_letter: &DeadLetter| {
            dead_letter.redrive == Some(operation) && dead_letter.redrive_sequence == 0
        };
        let dead_letters = self
            .dead_letters_in_flight()
            .await?
            .into_iter()
            .filter(unrecorded)
            .collect();
        self.recover(operation, dead_letters).await
    }

    /// Searches REDRIVE for dead letters that may have been published: records the ones found and sends the others.
    async fn recover(&self, operation: OperationId, dead_letters: Vec<DeadLetter>) -> Result<(), StepError> {
        if dead_letters.is_empty() {
            return Ok(());
        }
        let redrive = self.dead_letters.operation(operation).await?;
        let after = redrive.as_ref().map_or(0, |redrive| redrive.redrive_after);
        let rate_max = redrive.map_or(throttle::RATE_DEFAULT, |redrive| redrive.what.rate_max);
        let last = self.mesh.last_sequence(streams::REDRIVE).await?;
        let mut sequences = HashMap::new();
        if last > after {
            let messages = self.mesh.scan(streams::REDRIVE, None, after + 1, last);
            let mut messages = std::pin::pin!(messages);
            while let Some(message) = messages.try_next().await? {
                if let Some(redriven) = message.redriven() {
                    sequences.entry(redriven).or_insert(message.sequence);
                }
            }
        }
        let mut sent = Vec::new();
        let mut unsent = Vec::new();
        for dead_letter in dead_letters {
            let redriven = Redriven {
                dead_letter: dead_letter.id.0,
                round: dead_letter.round,
            };
            match (sequences.get(&redriven), redrive_target(&dead_letter)) {
                (Some(sequence), Some((kind, _))) => sent.push((to_version(&dead_letter), kind, *sequence)),
                _ => unsent.push(dead_letter),
            }
        }
        self.record_sent(operation, sent).await?;
        self.send(operation, unsent, &mut RateLimiter::new(rate_max, Instant::now()))
            .await
    }

    /// Reads all dead letters in state `Redriving`.
    async fn dead_letters_in_flight(&self) -> Result<Vec<DeadLetter>, StepError> {
        let filter = DeadLetterFilter {
            state: Some(DeadLetterState::Redriving),
            ..DeadLetterFilter::default()
        };
        let mut dead_letters = Vec::new();
        let mut after = None;
        loop {
            let page = self
                .dead_letters
                .scan(&filter, Order::OldestFirst, after, BATCH as usize)
                .await?;
            dead_letters.extend(page.dead_letters);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(dead_letters),
            }
        }
    }

    /// Runs a discard until it ends or the service stops, and retries failed steps.
    async fn run_discard(&self, id: OperationId) {
        while !self.stop.is_cancelled() {
            match self.discard_batch(id).await {
                Ok(operation) if operation.state != OperationState::Running => return,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(operation_id = id.0, %error, "discard step failed; retrying");
                    self.pause(RETRY_DELAY).await;
                }
            }
        }
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
