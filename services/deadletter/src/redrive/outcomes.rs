//! What became of dead letters that were sent once more.
//!
//! One that failed again comes back through ADVISORIES and DLQ, and the index opens it. One that is acknowledged is done,
//! and nobody tells of that; but the consumer's floor passes it. A failure passes the floor as well, so before a dead letter
//! counts as done, all advisories up to then are waited for. Should one be later than that, the dead letter is opened all the
//! same.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use herald_mesh::{
    Mesh,
    consumers::{self, ConsumerKind},
    streams,
};
use herald_model::time::Timestamp;
use herald_store::{Cause, Chosen, DeadLetters, Reopening};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{Metrics, domain::fingerprint, error::StepError, failures::Failures};

/// How often the floors are looked at while dead letters are under way.
const INTERVAL: Duration = Duration::from_millis(50);
/// How long an advisory may take into its stream after the floor has passed its message.
const GRACE: Duration = Duration::from_millis(50);
/// How long advisories are waited for. Those that come later still open their dead letters.
const CATCH_UP_MAX: Duration = Duration::from_secs(10);
/// Dead letters that are resolved together. Few, because fan-out waits for the same fsyncs.
const RESOLVED_PER_COMMIT: usize = 128;
/// How long to wait after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// The reason of a dead letter whose redrive was removed before anybody worked on it.
const REMOVED: &str = "removed from REDRIVE before it was acknowledged";

/// Dead letters under way.
pub(crate) struct Outcomes {
    mesh: Mesh,
    dead_letters: Arc<dyn DeadLetters>,
    failures: Failures,
    metrics: Metrics,
    /// By kind, and by where they are in REDRIVE.
    under_way: Mutex<BTreeMap<ConsumerKind, BTreeMap<u64, Chosen>>>,
    more: Notify,
    settled: Notify,
}

impl Outcomes {
    pub(super) fn new(
        mesh: Mesh,
        dead_letters: Arc<dyn DeadLetters>,
        failures: Failures,
        metrics: Metrics,
    ) -> Self {
        Self {
            mesh,
            dead_letters,
            failures,
            metrics,
            under_way: Mutex::default(),
            more: Notify::new(),
            settled: Notify::new(),
        }
    }

    /// Takes in dead letters that were sent: where they are in REDRIVE.
    pub(super) fn expect(&self, dead_letters: impl IntoIterator<Item = (Chosen, ConsumerKind, u64)>) {
        let mut under_way = self.under_way.lock();
        for (dead_letter, kind, sequence) in dead_letters {
            under_way.entry(kind).or_default().insert(sequence, dead_letter);
        }
        drop(under_way);
        self.more.notify_one();
    }

    /// Waits until something became known, but not longer than this.
    pub(super) async fn news(&self, wait: Duration) {
        let _ = tokio::time::timeout(wait, self.settled.notified()).await;
    }

    /// Looks after the dead letters until the end.
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

    /// Resolves dead letters that their consumers are done with.
    async fn look(&self) -> Result<(), StepError> {
        let kinds: Vec<ConsumerKind> = {
            let under_way = self.under_way.lock();
            under_way
                .iter()
                .filter(|(_, dead_letters)| !dead_letters.is_empty())
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
            let dead_letters = under_way.get(&kind).into_iter().flatten();
            passed.extend(
                dead_letters
                    .take_while(|(sequence, _)| **sequence <= floor)
                    .map(|(sequence, dead_letter)| (kind, *sequence, *dead_letter)),
            );
        }
        if passed.is_empty() {
            return Ok(());
        }
        self.catch_up().await;
        let removed = self.removed(&passed).await?;
        for dead_letter in &removed {
            self.failures.reopen_removed(&reopening(*dead_letter)).await?;
        }
        let done: Vec<Chosen> = passed
            .iter()
            .map(|(_, _, dead_letter)| *dead_letter)
            .filter(|dead_letter| !removed.contains(dead_letter))
            .collect();
        for some in done.chunks(RESOLVED_PER_COMMIT) {
            let resolved = self.dead_letters.resolve(some, Timestamp::now()).await?;
            self.metrics.resolved.inc_by(resolved);
        }
        let mut under_way = self.under_way.lock();
        for (kind, sequence, _) in &passed {
            if let Some(dead_letters) = under_way.get_mut(kind) {
                dead_letters.remove(sequence);
            }
        }
        drop(under_way);
        self.settled.notify_waiters();
        Ok(())
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
    async fn removed(&self, passed: &[(ConsumerKind, u64, Chosen)]) -> Result<Vec<Chosen>, StepError> {
        let mut in_order: Vec<_> = passed.iter().collect();
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

fn reopening(dead_letter: Chosen) -> Reopening {
    let cause = Cause::Removed;
    Reopening {
        dead_letter: dead_letter.id,
        round: dead_letter.round,
        cause,
        reason: REMOVED.into(),
        group: fingerprint::group(streams::REDRIVE, cause, REMOVED),
        group_reason: REMOVED.into(),
        failed_at: Timestamp::now(),
    }
}
