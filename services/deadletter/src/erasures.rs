//! Runs the erasures of users.

use std::{collections::HashSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use herald_model::{PostId, UserId, UserKey, time::Timestamp};
use herald_runtime::telemetry::error_chain;
use herald_store::{ErasedCounts, Erasure, ErasureId, Erasures, Forgotten, Result};
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
    pub(crate) fn new(mut user_data: UserData, metrics: Metrics) -> Self {
        user_data.stores.erasures = Arc::new(Counted {
            erasures: user_data.stores.erasures,
            metrics: metrics.clone(),
        });
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
        let mut running: FuturesUnordered<BoxFuture<'_, UserKey>> = FuturesUnordered::new();
        // Erasures of one user run one after the other: two at once would count the same messages.
        let mut users = HashSet::new();
        loop {
            tokio::select! {
                Some(ended) = running.next() => {
                    users.remove(&ended);
                    // An erasure that failed is read again at the next tick, and so retried.
                    continue;
                }
                _ = ticks.tick() => {}
                () = self.announced.notified() => {}
            }
            match self.user_data.running().await {
                Ok(erasures) => {
                    self.metrics.set_erasures(&erasures, Timestamp::now());
                    let free = RUNNING_MAX - users.len();
                    let new = erasures.into_iter().filter(|one| users.insert(one.user));
                    running.extend(new.take(free).map(|one| self.run(one).boxed()));
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

    async fn run(&self, erasure: Erasure) -> UserKey {
        let erased = self.user_data.erase(&erasure).await;
        if let Err(error) = erased {
            let (erasure_id, error) = (erasure.id.0, error_chain(&error));
            tracing::warn!(erasure_id, error, "an erasure failed; retrying");
            tokio::time::sleep(RETRY_DELAY).await;
        }
        erasure.user
    }
}

/// Erasures whose discards of dead letters are counted in the metrics when they are recorded, because a run can be
/// cancelled at any time.
struct Counted {
    erasures: Arc<dyn Erasures>,
    metrics: Metrics,
}

#[async_trait]
impl Erasures for Counted {
    async fn begin(&self, id: &UserId, actor: &str, now: Timestamp) -> Result<Option<Erasure>> {
        self.erasures.begin(id, actor, now).await
    }

    async fn begin_again(
        &self,
        user: UserKey,
        post: PostId,
        actor: &str,
        now: Timestamp,
    ) -> Result<Option<Erasure>> {
        self.erasures.begin_again(user, post, actor, now).await
    }

    async fn get(&self, id: ErasureId) -> Result<Option<Erasure>> {
        self.erasures.get(id).await
    }

    async fn running(&self) -> Result<Vec<Erasure>> {
        self.erasures.running().await
    }

    async fn is_forgotten(&self, id: ErasureId) -> Result<bool> {
        self.erasures.is_forgotten(id).await
    }

    async fn record_forgotten(&self, id: ErasureId, forgotten: &Forgotten) -> Result<()> {
        self.erasures.record_forgotten(id, forgotten).await
    }

    async fn add(&self, id: ErasureId, counts: &ErasedCounts) -> Result<()> {
        // Before the call: they are discarded, also if it fails or is cancelled.
        self.metrics.discarded.inc_by(counts.dead_letters);
        self.erasures.add(id, counts).await
    }

    async fn complete(&self, id: ErasureId, now: Timestamp) -> Result<()> {
        self.erasures.complete(id, now).await
    }

    async fn list(&self, before: Option<ErasureId>, limit: usize) -> Result<Vec<Erasure>> {
        self.erasures.list(before, limit).await
    }
}
