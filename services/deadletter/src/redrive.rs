//! Redrives: letters on their second way.
//!
//! A redrive is an act in the store with the letters that were chosen for it. It takes some of them (each begins a new
//! round, and only one redrive gets it), publishes them to REDRIVE, records where they are there, and goes on ([`send`]). A process
//! that dies in between leaves letters that are taken and not recorded: the next one looks for them in REDRIVE and
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
use herald_mesh::{Mesh, Redriven, Subject, consumers::Kind, streams};
use herald_model::time::Micros;
use herald_store::{
    Act, ActId, ActKind, ActState, Chosen, DeadLetters, Letter, LetterFilter, LetterState, Order,
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

/// Letters taken together. Few, because taking them is a burst of work beside which posts have to wait.
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
    letters: Arc<dyn DeadLetters>,
    outcomes: Arc<Outcomes>,
    metrics: Metrics,
    in_flight_max: u64,
    begun: mpsc::Sender<Act>,
    stop: CancellationToken,
}

/// Which consumers a letter goes back to, and on which subject; `None` for one that none of them would know what to do
/// with.
pub(crate) fn way_back(letter: &Letter) -> Option<(Kind, Subject)> {
    let kind = letter.kind.parse().ok()?;
    let subject = Subject::parse(&letter.subject)?;
    (!subject.is_family()).then_some((kind, subject))
}

impl Redrives {
    /// None run yet: [`run`](Self::run) takes those that are begun.
    pub(crate) fn new(
        mesh: Mesh,
        letters: Arc<dyn DeadLetters>,
        failures: Failures,
        metrics: Metrics,
        in_flight_max: u64,
        stop: CancellationToken,
    ) -> (Self, mpsc::Receiver<Act>) {
        let outcomes = Outcomes::new(mesh.clone(), letters.clone(), failures, metrics.clone());
        let (begun, waiting) = mpsc::channel(BEGUN_MAX);
        let redrives = Self {
            outcomes: Arc::new(outcomes),
            mesh,
            letters,
            metrics,
            in_flight_max,
            begun,
            stop,
        };
        (redrives, waiting)
    }

    /// Has an act worked on in the background until it is over. At the shutdown that is left to the next start.
    pub(crate) async fn start(&self, act: &Act) {
        let _ = self.begun.send(act.clone()).await;
    }

    /// Goes on with what an earlier run left under way, and works on what is begun, until the end; then waits for letters
    /// that are just being sent.
    pub(crate) async fn run(&self, waiting: mpsc::Receiver<Act>) {
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

    async fn work(&self, left: Vec<Act>, mut waiting: mpsc::Receiver<Act>) {
        let mut running = JoinSet::new();
        for act in left {
            running.spawn(self.clone().work_on(act));
        }
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                Some(act) = waiting.recv() => {
                    running.spawn(self.clone().work_on(act));
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

    async fn work_on(self, act: Act) {
        match act.what.kind {
            ActKind::Redrive => {
                let pace = Pace::new(act.what.rate_max, Instant::now());
                self.drive(act.id, pace).await;
            }
            ActKind::Discard => self.discard(act.id).await,
            ActKind::Cancel => {}
        }
    }

    /// Takes up what an earlier run left under way; the acts that aren't over.
    async fn resume(&self) -> Result<Vec<Act>, StepError> {
        let mut unsent: HashMap<ActId, Vec<Letter>> = HashMap::new();
        for letter in self.under_way().await? {
            match (way_back(&letter), letter.redrive) {
                (Some((kind, _)), _) if letter.redrive_sequence != 0 => {
                    self.outcomes
                        .expect([(chosen(&letter), kind, letter.redrive_sequence)]);
                }
                (_, Some(act)) => unsent.entry(act).or_default().push(letter),
                (_, None) => {}
            }
        }
        for (act, letters) in unsent {
            tracing::info!(
                redrive_id = act.0,
                letters = letters.len(),
                "a redrive was broken off: its last letters are looked for"
            );
            self.recover(act, letters).await?;
        }
        Ok(self.letters.running().await?)
    }

    /// Sends a redrive's letters until there are none left, or it is stopped.
    async fn drive(&self, id: ActId, mut pace: Pace) {
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
    async fn drive_on(&self, id: ActId, pace: &mut Pace) -> Result<(), StepError> {
        while let Some(letters) = self.take(id).await? {
            self.send(id, letters, pace).await?;
        }
        Ok(())
    }

    /// Claims the next dead letters of a redrive once it may have more in flight; `None` when the redrive is over or the service
    /// stops.
    async fn take(&self, id: ActId) -> Result<Option<Vec<Letter>>, StepError> {
        while !self.stop.is_cancelled() {
            let Some(act) = self.letters.act(id).await? else {
                return Ok(None);
            };
            if act.state != ActState::Running {
                return Ok(None);
            }
            if pace::is_hopeless(&act) {
                let reason = format!("{} letters failed again", act.failed);
                self.finish(id, ActState::Stopped, &reason).await?;
                return Ok(None);
            }
            if act.reached >= act.frozen {
                self.finish(id, ActState::Done, "").await?;
                return Ok(None);
            }
            let room = pace::in_flight_max(&act, self.in_flight_max).saturating_sub(act.in_flight());
            if room == 0 {
                self.outcomes.news(WAIT).await;
                continue;
            }
            let count = pace::share(act.what.rate_max, room.min(BATCH).min(act.frozen - act.reached));
            // Claimed dead letters that are not recorded as sent can only be in REDRIVE above this sequence.
            let after = self.mesh.last_sequence(streams::REDRIVE).await?;
            let step = self
                .letters
                .claim(id, count as usize, after, Micros::now())
                .await?;
            return Ok(Some(step.letters));
        }
        Ok(None)
    }

    async fn finish(&self, id: ActId, state: ActState, reason: &str) -> Result<(), StepError> {
        let act = self.letters.finish(id, state, reason, Micros::now()).await?;
        tracing::info!(
            redrive_id = id.0,
            letters = act.frozen,
            sent = act.acted(),
            failed = act.failed,
            reason,
            "redrive ended"
        );
        Ok(())
    }

    /// Takes care of letters of a redrive that were taken, and of which it isn't known whether they were published.
    async fn recover_taken(&self, act: ActId) -> Result<(), StepError> {
        let taken = |letter: &Letter| letter.redrive == Some(act) && letter.redrive_sequence == 0;
        let letters = self.under_way().await?.into_iter().filter(taken).collect();
        self.recover(act, letters).await
    }

    async fn recover(&self, act: ActId, letters: Vec<Letter>) -> Result<(), StepError> {
        if letters.is_empty() {
            return Ok(());
        }
        let redrive = self.letters.act(act).await?;
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
        for letter in letters {
            let redriven = Redriven {
                letter: letter.id.0,
                round: letter.round,
            };
            match (there.get(&redriven), way_back(&letter)) {
                (Some(sequence), Some((kind, _))) => sent.push((chosen(&letter), kind, *sequence)),
                _ => unsent.push(letter),
            }
        }
        self.record(act, sent).await?;
        self.send(act, unsent, &mut Pace::new(rate_max, Instant::now()))
            .await
    }

    /// All letters whose outcome isn't known.
    async fn under_way(&self) -> Result<Vec<Letter>, StepError> {
        let filter = LetterFilter {
            state: Some(LetterState::Redriving),
            ..LetterFilter::default()
        };
        let mut letters = Vec::new();
        let mut after = None;
        loop {
            let page = self
                .letters
                .scan(&filter, Order::OldestFirst, after, BATCH as usize)
                .await?;
            letters.extend(page.letters);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(letters),
            }
        }
    }

    /// Discards an act's letters until there are none left.
    async fn discard(&self, id: ActId) {
        while !self.stop.is_cancelled() {
            match self.discard_on(id).await {
                Ok(act) if act.state != ActState::Running => return,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(act_id = id.0, %error, "discard interrupted");
                    self.pause(RETRY).await;
                }
            }
        }
    }

    /// Discards some letters.
    pub(crate) async fn discard_on(&self, id: ActId) -> Result<Act, StepError> {
        let step = self.letters.discard(id, BATCH as usize, Micros::now()).await?;
        self.metrics.discarded.inc_by(step.letters.len() as u64);
        self.metrics.open(self.letters.count(LetterState::Open).await?);
        Ok(step.act)
    }

    async fn pause(&self, time: Duration) {
        self.stop.run_until_cancelled(tokio::time::sleep(time)).await;
    }
}

fn chosen(letter: &Letter) -> Chosen {
    Chosen {
        id: letter.id,
        round: letter.round,
    }
}
