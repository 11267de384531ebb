//! Samples the number of open dead letters for metrics.

use std::{sync::Arc, time::Duration};

use herald_store::{DeadLetterState, DeadLetters};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::Metrics;

/// Interval between two samples. A count for each message would load a shared store.
const INTERVAL: Duration = Duration::from_secs(10);

/// Samples until the shutdown.
pub(crate) async fn run(dead_letters: Arc<dyn DeadLetters>, metrics: Metrics, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        match stop
            .run_until_cancelled(dead_letters.count(DeadLetterState::Open))
            .await
        {
            Some(Ok(open)) => metrics.set_open(open),
            Some(Err(error)) => tracing::debug!(%error, "can't count the open dead letters; retrying"),
            None => {}
        }
    }
}
