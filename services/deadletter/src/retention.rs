//! Removes data past its retention, each minute, in one process at a time.

use std::{sync::Arc, time::Duration};

use herald_model::time::Timestamp;
use herald_store::{Leases, RETENTION_LEASE, Result, Retention};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_mins(1);
/// Duration of the lease, longer than a round takes.
const LEASE: Duration = Duration::from_mins(5);

/// Runs until the shutdown.
pub(crate) async fn run(leases: Arc<dyn Leases>, retention: Arc<dyn Retention>, stop: CancellationToken) {
    let holder = uuid::Uuid::new_v4().to_string();
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + INTERVAL, INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        if let Err(error) = trim(&*leases, &*retention, &holder).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "can't remove data that is older than its retention; retrying in a minute"
            );
        }
    }
}

async fn trim(leases: &dyn Leases, retention: &dyn Retention, holder: &str) -> Result<()> {
    let Some(fence) = leases.acquire(RETENTION_LEASE, holder, LEASE).await? else {
        return Ok(());
    };
    let trimmed = retention.trim(Timestamp::now()).await;
    leases.release(&fence).await?;
    trimmed
}
