//! Redrives: dead letters on their second way.
//!
//! A redrive is an operation in the store with the dead letters that were chosen for it. It takes some of them (each begins a new
//! round, and only one redrive gets it), publishes them to REDRIVE, records where they are there, and goes on ([`send`]). A process
//! that dies in between leaves dead letters that are taken and not recorded: the next one looks for them in REDRIVE and
//! publishes only those that aren't there.
//!
//! What becomes of them is the [`outcomes`]' business.

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
    Chosen, DeadLetter, DeadLetterFilter, DeadLetterState, DeadLetters, Operation, OperationId,
    OperationKind, OperationState, Order,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    Metrics,
    domain::pace::{self, Pace},
    error::StepError,
    failures::Failures,
    redrive::outcomes::Outcomes,
};

/// Dead letters taken together. Few, because taking them is a burst of work beside which posts have to wait.
const BATCH: u64 = 128;
/// Acts that wait to be worked on; they are taken at once.
const BEGUN_MAX: usize = 64;
/// How long to wait for outcomes before looking again.
const WAIT: Duration = Duration::from_millis(100);
/// How long to wait after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// All that run. Cloning shares them.
#[derive(Clone)]
pub(crate) struct Redrives {
    mesh: Mesh,
    dead_letters: Arc<dyn DeadLetters>,
    outcomes: Arc<Outcomes>,
    metrics: Metrics,
    in_flight_max: u64,
    begun: mpsc::Sender<Operation>,
    stop: CancellationToken,
}

/// Which consumers a dead letter goes back to, and on which subject; `None` for one that none of them would know what to do
/// with.
pub(crate) fn way_back(dead_letter: &DeadLetter) -> Option<(ConsumerKind, Subject)> {
    let kind = dead_letter.kind.parse().ok()?;
    let subject = Subject::parse(&dead_letter.subject)?;
    (!subject.is_family()).then_some((kind, subject))
}

impl Redrives {
    /// None run yet: [`run`](Self::run) takes those that are begun.
    pub(crate) fn new(
        mesh: Mesh,
        dead_letters: Arc<dyn DeadLetters>,
        failures: Failures,
        metrics: Metrics,
        in_flight_max: u64,
        stop: CancellationToken,
    ) -> (Self, mpsc::Receiver<Operation>) {
        let outcomes = Outcomes::new(mesh.clone(), dead_letters.clone(), failures, metrics.clone());
        let (begun, waiting) = mpsc::channel(BEGUN_MAX);
        let redrives = Self {
            outcomes: Arc::new(outcomes),
            mesh,
            dead_letters,
            metrics,
            in_flight_max,
            begun,
            stop,
        };
        (redrives, waiting)
    }

    /// Has an operation worked on in the background until it is over. At the shutdown that is left to the next start.
    pub(crate) async fn start(&self, operation: &Operation) {
        let _ = self.begun.send(operation.clone()).await;
    }

    /// Goes on with what an earlier run left under way, and works on what is begun, until the end; then waits for dead letters
    /// that are just being sent.
    pub(crate) async fn run(&self, waiting: mpsc::Receiver<Operation>) {
        let left = loop {
            match self.resume().await {
                Ok(left) => break left,
                Err(error) => {
                    tracing::warn!(%error, "redrives of an earlier run can't be gone on with yet");
                    self.pause(RETRY).await;
                }
            }
            if self.stop.is_cancelled() {
                return;
            }
        };
        futures::join!(self.outcomes.run(&self.stop), self.work(left, waiting));
    }

    async fn work(&self, left: Vec<Operation>, mut waiting: mpsc::Receiver<Operation>) {
        let mut running = JoinSet::new();
        for operation in left {
            running.spawn(self.clone().work_on(operation));
        }
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                Some(operation) = waiting.recv() => {
                    running.spawn(self.clone().work_on(operation));
                }
                Some(ended) = running.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a redrive died; it goes on at the next start");
                    }
                }
            }
        }
        while running.join_next().await.is_some() {}
    }

    async fn work_on(self, operation: Operation) {
        match operation.what.kind {
            OperationKind::Redrive => {
                let pace = Pace::new(operation.what.rate_max, Instant::now());
                self.drive(operation.id, pace).await;
            }
            OperationKind::Discard => self.discard(operation.id).await,
            OperationKind::Cancel => {}
        }
    }

    /// Takes up what an earlier run left under way; the operations that aren't over.
    async fn resume(&self) -> Result<Vec<Operation>, StepError> {
        let mut unsent: HashMap<OperationId, Vec<DeadLetter>> = HashMap::new();
        for dead_letter in self.under_way().await? {
            match (way_back(&dead_letter), dead_letter.redrive) {
                (Some((kind, _)), _) if dead_letter.redrive_sequence != 0 => {
                    self.outcomes
                        .expect([(chosen(&dead_letter), kind, dead_letter.redrive_sequence)]);
                }
                (_, Some(operation)) => unsent.entry(operation).or_default().push(dead_letter),
                (_, None) => {}
            }
        }
        for (operation, dead_letters) in unsent {
            tracing::info!(
                redrive_id = operation.0,
                dead_letters = dead_letters.len(),
                "a redrive was broken off: its last dead letters are looked for"
            );
            self.recover(operation, dead_letters).await?;
        }
        Ok(self.dead_letters.running().await?)
    }

    /// Sends a redrive's dead letters until there are none left, or it is stopped.
    async fn drive(&self, id: OperationId, mut pace: Pace) {
        let mut interrupted = false;
        while !self.stop.is_cancelled() {
            let driven = async {
                if interrupted {
                    self.recover_taken(id).await?;
                }
                self.drive_on(id, &mut pace).await
            };
            match driven.await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(redrive_id = id.0, %error, "redrive interrupted");
                    interrupted = true;
                    self.pause(RETRY).await;
                }
            }
        }
    }

    /// Claims and sends a redrive's dead letters until it is over.
    async fn drive_on(&self, id: OperationId, pace: &mut Pace) -> Result<(), StepError> {
        while let Some(dead_letters) = self.take(id).await? {
            self.send(id, dead_letters, pace).await?;
        }
        Ok(())
    }

    /// Claims the next dead letters of a redrive once it may have more in flight; `None` when the redrive is over or the service
    /// stops.
    async fn take(&self, id: OperationId) -> Result<Option<Vec<DeadLetter>>, StepError> {
        while !self.stop.is_cancelled() {
            let Some(operation) = self.dead_letters.operation(id).await? else {
                return Ok(None);
            };
            if operation.state != OperationState::Running {
                return Ok(None);
            }
            if pace::is_hopeless(&operation) {
                let reason = format!("{} dead letters failed again", operation.failed);
                self.finish(id, OperationState::Stopped, &reason).await?;
                return Ok(None);
            }
            if operation.reached >= operation.frozen {
                self.finish(id, OperationState::Done, "").await?;
                return Ok(None);
            }
            let room =
                pace::in_flight_max(&operation, self.in_flight_max).saturating_sub(operation.in_flight());
            if room == 0 {
                self.outcomes.news(WAIT).await;
                continue;
            }
            let count = pace::share(
                operation.what.rate_max,
                room.min(BATCH).min(operation.frozen - operation.reached),
            );
            // Claimed dead letters that are not recorded as sent can only be in REDRIVE above this sequence.
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
            dead_letters = operation.frozen,
            sent = operation.acted(),
            failed = operation.failed,
            reason,
            "redrive ended"
        );
        Ok(())
    }

    /// Takes care of dead letters of a redrive that were taken, and of which it isn't known whether they were published.
    async fn recover_taken(&self, operation: OperationId) -> Result<(), StepError> {
        let taken = |dead_letter: &DeadLetter| {
            dead_letter.redrive == Some(operation) && dead_letter.redrive_sequence == 0
        };
        let dead_letters = self.under_way().await?.into_iter().filter(taken).collect();
        self.recover(operation, dead_letters).await
    }

    async fn recover(&self, operation: OperationId, dead_letters: Vec<DeadLetter>) -> Result<(), StepError> {
        if dead_letters.is_empty() {
            return Ok(());
        }
        let redrive = self.dead_letters.operation(operation).await?;
        let after = redrive.as_ref().map_or(0, |redrive| redrive.redrive_after);
        let rate_max = redrive.map_or(pace::RATE_DEFAULT, |redrive| redrive.what.rate_max);
        let last = self.mesh.last_sequence(streams::REDRIVE).await?;
        let mut there = HashMap::new();
        if last > after {
            let messages = self.mesh.scan(streams::REDRIVE, None, after + 1, last);
            let mut messages = std::pin::pin!(messages);
            while let Some(message) = messages.try_next().await? {
                if let Some(redriven) = message.redriven() {
                    there.entry(redriven).or_insert(message.sequence);
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
            match (there.get(&redriven), way_back(&dead_letter)) {
                (Some(sequence), Some((kind, _))) => sent.push((chosen(&dead_letter), kind, *sequence)),
                _ => unsent.push(dead_letter),
            }
        }
        self.record(operation, sent).await?;
        self.send(operation, unsent, &mut Pace::new(rate_max, Instant::now()))
            .await
    }

    /// All dead letters whose outcome isn't known.
    async fn under_way(&self) -> Result<Vec<DeadLetter>, StepError> {
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

    /// Discards an operation's dead letters until there are none left.
    async fn discard(&self, id: OperationId) {
        while !self.stop.is_cancelled() {
            match self.discard_on(id).await {
                Ok(operation) if operation.state != OperationState::Running => return,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(operation_id = id.0, %error, "discard interrupted");
                    self.pause(RETRY).await;
                }
            }
        }
    }

    /// Discards some dead letters.
    pub(crate) async fn discard_on(&self, id: OperationId) -> Result<Operation, StepError> {
        let step = self
            .dead_letters
            .discard(id, BATCH as usize, Timestamp::now())
            .await?;
        self.metrics.discarded.inc_by(step.dead_letters.len() as u64);
        self.metrics
            .open(self.dead_letters.count(DeadLetterState::Open).await?);
        Ok(step.operation)
    }

    async fn pause(&self, time: Duration) {
        self.stop.run_until_cancelled(tokio::time::sleep(time)).await;
    }
}

fn chosen(dead_letter: &DeadLetter) -> Chosen {
    Chosen {
        id: dead_letter.id,
        round: dead_letter.round,
    }
}
