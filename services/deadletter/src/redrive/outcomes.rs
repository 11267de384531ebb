//! What became of letters that were sent once more.
//!
//! One that failed again comes back through ADVISORIES and DLQ, and the index opens it. One that is acknowledged is done,
//! and nobody tells of that; but the consumer's floor passes it. A failure passes the floor as well, so before a letter
//! counts as done, all advisories up to then are waited for. Should one be later than that, the letter is opened all the
//! same.
//!
//! A letter that travelled with others and wasn't done at once is in REDRIVE once more, by itself and further on. That is
//! looked for before it counts as done.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use herald_mesh::{
    Mesh, Redriven,
    consumers::{self, Kind},
    streams,
};
use herald_model::time::Micros;
use herald_store::{ActId, Cause, Chosen, DeadLetters, Reopening};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{Metrics, domain::fingerprint, error::StepError, failures::Failures};

/// How often the floors are looked at while letters are under way.
const INTERVAL: Duration = Duration::from_millis(50);
/// How long an advisory may take into its stream after the floor has passed its message.
const GRACE: Duration = Duration::from_millis(50);
/// How long advisories are waited for. Those that come later still open their letters.
const CATCH_UP_MAX: Duration = Duration::from_secs(10);
/// Letters that are resolved together. Few, because fan-out waits for the same fsyncs.
const RESOLVED_PER_COMMIT: usize = 128;
/// How long to wait after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// The reason of a letter whose redrive was removed before anybody worked on it.
const REMOVED: &str = "removed from REDRIVE before it was acknowledged";

/// A letter under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sent {
    letter: Chosen,
    act: ActId,
}

/// A letter whose message the floor of its consumer has passed.
#[derive(Debug, Clone, Copy)]
struct Passed {
    kind: Kind,
    /// Where it was.
    sequence: u64,
    sent: Sent,
    floor: u64,
}

/// Letters under way.
pub(crate) struct Outcomes {
    mesh: Mesh,
    letters: Arc<dyn DeadLetters>,
    failures: Failures,
    metrics: Metrics,
    /// By kind, and by where they are in REDRIVE.
    under_way: Mutex<BTreeMap<Kind, BTreeMap<u64, Vec<Sent>>>>,
    more: Notify,
    settled: Notify,
}

impl Outcomes {
    pub(super) fn new(
        mesh: Mesh,
        letters: Arc<dyn DeadLetters>,
        failures: Failures,
        metrics: Metrics,
    ) -> Self {
        Self {
            mesh,
            letters,
            failures,
            metrics,
            under_way: Mutex::default(),
            more: Notify::new(),
            settled: Notify::new(),
        }
    }

    /// Takes in letters that a redrive has sent: where they are in REDRIVE.
    pub(super) fn expect(&self, act: ActId, letters: impl IntoIterator<Item = (Chosen, Kind, u64)>) {
        let mut under_way = self.under_way.lock();
        for (letter, kind, sequence) in letters {
            let there = under_way.entry(kind).or_default().entry(sequence).or_default();
            there.push(Sent { letter, act });
        }
        drop(under_way);
        self.more.notify_one();
    }

    /// Waits until something became known, but not longer than this.
    pub(super) async fn news(&self, wait: Duration) {
        let _ = tokio::time::timeout(wait, self.settled.notified()).await;
    }

    /// Looks after the letters until the end.
    pub(super) async fn run(&self, stop: &CancellationToken) {
        let run = async {
            loop {
                while self.under_way.lock().values().all(BTreeMap::is_empty) {
                    self.more.notified().await;
                }
                tokio::time::sleep(INTERVAL).await;
                if let Err(error) = self.look().await {
                    tracing::warn!(%error, "outcomes of redrives not known yet");
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        stop.run_until_cancelled(run).await;
    }

    /// Resolves letters that their consumers are done with.
    async fn look(&self) -> Result<(), StepError> {
        let kinds: Vec<Kind> = {
            let under_way = self.under_way.lock();
            under_way
                .iter()
                .filter(|(_, letters)| !letters.is_empty())
                .map(|(kind, _)| *kind)
                .collect()
        };
        let mut passed = Vec::new();
        for kind in kinds {
            let floor = self
                .mesh
                .ack_floor(streams::REDRIVE, consumers::redrive(kind))
                .await?;
            let under_way = self.under_way.lock();
            let there = under_way.get(&kind).into_iter();
            let there = there.flat_map(|sequences| sequences.range(..=floor));
            for (&sequence, letters) in there {
                passed.extend(letters.iter().map(|&sent| Passed {
                    kind,
                    sequence,
                    sent,
                    floor,
                }));
            }
        }
        if passed.is_empty() {
            return Ok(());
        }
        self.catch_up().await;
        let moved = self.follow(&passed).await?;
        let is_here = |passed: &&Passed| !moved.contains_key(&passed.sent.letter);
        let here: Vec<Passed> = passed.iter().filter(is_here).copied().collect();
        let removed = self.removed(&here).await?;
        for letter in &removed {
            self.failures.reopen_removed(&reopening(*letter)).await?;
        }
        let done: Vec<Chosen> = here
            .iter()
            .map(|passed| passed.sent.letter)
            .filter(|letter| !removed.contains(letter))
            .collect();
        for some in done.chunks(RESOLVED_PER_COMMIT) {
            let resolved = self.letters.resolve(some, Micros::now()).await?;
            self.metrics.resolved.inc_by(resolved);
        }
        let mut under_way = self.under_way.lock();
        for Passed {
            kind, sequence, sent, ..
        } in &passed
        {
            let of_kind = under_way.entry(*kind).or_default();
            if let Some(letters) = of_kind.get_mut(sequence) {
                letters.retain(|letter| letter != sent);
                if letters.is_empty() {
                    of_kind.remove(sequence);
                }
            }
            if let Some(sequence) = moved.get(&sent.letter) {
                of_kind.entry(*sequence).or_default().push(*sent);
            }
        }
        drop(under_way);
        self.settled.notify_waiters();
        Ok(())
    }

    /// Those that are in REDRIVE once more, by themselves, and aren't passed there: where that is. The store knows it then.
    async fn follow(&self, passed: &[Passed]) -> Result<HashMap<Chosen, u64>, StepError> {
        let mut lowest: BTreeMap<Kind, u64> = BTreeMap::new();
        for Passed { kind, sequence, .. } in passed {
            let lowest = lowest.entry(*kind).or_insert(*sequence);
            *lowest = (*lowest).min(*sequence);
        }
        let mut moved = HashMap::new();
        let mut places: BTreeMap<ActId, Vec<(Chosen, u64)>> = BTreeMap::new();
        for (kind, lowest) in lowest {
            let apart = self.mesh.redriven_apart(kind, lowest).await?;
            for passed in passed.iter().filter(|passed| passed.kind == kind) {
                let Sent { letter, act } = passed.sent;
                let redriven = Redriven {
                    letter: letter.id.0,
                    round: letter.round,
                };
                if let Some(&sequence) = apart.get(&redriven)
                    && sequence > passed.floor
                {
                    moved.insert(letter, sequence);
                    places.entry(act).or_default().push((letter, sequence));
                }
            }
        }
        for (act, places) in places {
            self.letters.sent(act, &places).await?;
        }
        Ok(moved)
    }

    /// Waits until every failure up to now is in the store.
    async fn catch_up(&self) {
        let reached = async {
            tokio::time::sleep(GRACE).await;
            for (stream, consumer) in [
                (streams::ADVISORIES, consumers::DEADLETTER),
                (streams::DLQ, consumers::DEAD_LETTERS),
            ] {
                let last = self.mesh.last_sequence(stream).await?;
                while self.mesh.ack_floor(stream, consumer).await? < last {
                    tokio::time::sleep(GRACE / 5).await;
                }
            }
            Ok::<_, StepError>(())
        };
        match tokio::time::timeout(CATCH_UP_MAX, reached).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "not known whether all advisories are in"),
            Err(_) => tracing::warn!("advisories are behind: some redrives may be open again later"),
        }
    }

    /// Those that are no longer in REDRIVE. Limits remove from the front, so when the first is there all are.
    async fn removed(&self, passed: &[Passed]) -> Result<Vec<Chosen>, StepError> {
        let mut in_order: BTreeMap<u64, Vec<Chosen>> = BTreeMap::new();
        for Passed { sequence, sent, .. } in passed {
            in_order.entry(*sequence).or_default().push(sent.letter);
        }
        let mut removed = Vec::new();
        for (sequence, letters) in in_order {
            if self.mesh.message(streams::REDRIVE, sequence).await?.is_some() {
                break;
            }
            removed.extend(letters);
        }
        Ok(removed)
    }
}

fn reopening(letter: Chosen) -> Reopening {
    let cause = Cause::Removed;
    Reopening {
        letter: letter.id,
        round: letter.round,
        cause,
        reason: REMOVED.into(),
        group: fingerprint::group(streams::REDRIVE, cause, REMOVED),
        group_reason: REMOVED.into(),
        failed_at: Micros::now(),
    }
}
