//! Runs the erasures of users.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use herald_model::time::Timestamp;
use herald_runtime::telemetry::error_chain;
use herald_store::{Erasure, ErasureId};
use herald_user_data::UserData;
use tokio::{sync::Notify, time::MissedTickBehavior};

use crate::Metrics;

/// Name of the lease of the process that runs the erasures.
pub(crate) const LEASE: &str = "erasure";
/// Interval between two readings of the erasures that another process has begun.
const READ_INTERVAL: Duration = Duration::from_secs(2);
/// Delay before the retry of an erasure that failed.
const RETRY_DELAY: Duration = Duration::from_secs(10);
/// Erasures that run at once; each may wait for messages in flight. Further erasures wait for their turn.
const RUNNING_MAX: usize = 16;

/// Runs the erasures that are not complete. Clones share the announcements.
#[derive(Clone)]
pub(crate) struct ErasureRunner {
    user_data: UserData,
    metrics: Metrics,
    announced: Arc<Notify>,
}

impl ErasureRunner {
    pub(crate) fn new(user_data: UserData, metrics: Metrics) -> Self {
        Self {
            user_data,
            metrics,
            announced: Arc::default(),
        }
    }

    pub(crate) fn user_data(&self) -> &UserData {
        &self.user_data
    }

    /// Makes the runner read the erasures at once, because one was begun.
    pub(crate) fn announce(&self) {
        self.announced.notify_one();
    }

    /// Runs erasures. Never returns; it can be cancelled at any time.
    pub(crate) async fn lead(self) {
        let mut ticks = tokio::time::interval(READ_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut running: FuturesUnordered<BoxFuture<'_, ErasureId>> = FuturesUnordered::new();
        let mut ids = HashSet::new();
        loop {
            tokio::select! {
                Some(ended) = running.next() => {
                    ids.remove(&ended);
                    // An erasure that failed is read again at the next tick, and so retried.
                    continue;
                }
                _ = ticks.tick() => {}
                () = self.announced.notified() => {}
            }
            match self.user_data.running().await {
                Ok(erasures) => {
                    self.metrics.set_erasures(&erasures, Timestamp::now());
                    let new = erasures.into_iter().filter(|one| !ids.contains(&one.id));
                    let new: Vec<_> = new.take(RUNNING_MAX - ids.len()).collect();
                    for erasure in new {
                        ids.insert(erasure.id);
                        running.push(self.run(erasure).boxed());
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        error = error_chain(&error),
                        "can't list the erasures that run; retrying"
                    );
                }
            }
        }
    }

    async fn run(&self, erasure: Erasure) -> ErasureId {
        let erased = self.user_data.erase(&erasure).await;
        self.count_discarded(&erasure).await;
        if let Err(error) = erased {
            let (erasure_id, error) = (erasure.id.0, error_chain(&error));
            tracing::warn!(erasure_id, error, "an erasure failed; retrying");
            tokio::time::sleep(RETRY_DELAY).await;
        }
        erasure.id
    }

    /// Counts the dead letters that a run has discarded. `before` is the erasure before the run.
    async fn count_discarded(&self, before: &Erasure) {
        match self.user_data.erasure(before.id).await {
            Ok(after) => {
                let after = after.map_or(0, |after| after.counts.dead_letters);
                let discarded = after.saturating_sub(before.counts.dead_letters);
                self.metrics.discarded.inc_by(discarded);
            }
            Err(error) => {
                tracing::debug!(
                    erasure_id = before.id.0,
                    error = error_chain(&error),
                    "discarded dead letters are not counted"
                );
            }
        }
    }
}
