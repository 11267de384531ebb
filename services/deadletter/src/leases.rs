//! The work of which all instances together run one: redrives, the continuous audit and retention.

use std::{sync::Arc, time::Duration};

use herald_audit::Auditor;
use herald_model::time::Timestamp;
use herald_store::{HeldLease, LeaseHolder, Leases, RETENTION_LEASE, Retention};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::{
    Metrics,
    config::ContinuousAudit,
    continuous_audit,
    redrive::{self, OperationRunner},
};

/// Name of the lease of the process that runs the continuous audit.
const AUDIT_LEASE: &str = "audit";
/// Interval between two runs of retention.
const RETENTION_INTERVAL: Duration = Duration::from_mins(1);

/// Does work while this process holds its lease.
#[derive(Clone)]
pub(crate) struct LeasedWork {
    pub(crate) leases: Arc<dyn Leases>,
    pub(crate) duration: Duration,
    pub(crate) metrics: Metrics,
    pub(crate) stop: CancellationToken,
}

impl LeasedWork {
    /// Runs redrives, and interrupted discards.
    pub(crate) async fn run_operations(self, runner: OperationRunner) {
        self.run(redrive::LEASE, |lease| Box::pin(runner.clone().lead(lease)))
            .await;
    }

    /// Runs the continuous audit. When another process runs it, the metrics of its findings are cleared here.
    pub(crate) async fn run_continuous_audit(self, config: ContinuousAudit, auditor: Auditor) {
        let metrics = self.metrics.clone();
        self.run(AUDIT_LEASE, |lease| {
            let (auditor, metrics) = (auditor.clone(), metrics.clone());
            async move {
                continuous_audit::run(config, auditor, metrics.clone(), lease.lost().clone()).await;
                metrics.clear_audit();
            }
        })
        .await;
    }

    /// Removes data past its retention.
    pub(crate) async fn run_retention(self, retention: Arc<dyn Retention>) {
        self.run(RETENTION_LEASE, |lease| {
            let retention = retention.clone();
            async move { trim_each_minute(&*retention, lease.lost()).await }
        })
        .await;
    }

    async fn run<F: Future<Output = ()>>(&self, name: &'static str, work: impl Fn(HeldLease) -> F) {
        let holder = LeaseHolder::new(self.leases.clone(), name, self.duration);
        let counted = |lease| {
            let work = work(lease);
            async move {
                self.metrics.set_leading(name, true);
                work.await;
                self.metrics.set_leading(name, false);
            }
        };
        self.metrics.set_leading(name, false);
        holder.run(&self.stop, counted).await;
    }
}

async fn trim_each_minute(retention: &dyn Retention, lost: &CancellationToken) {
    let mut ticks = tokio::time::interval(RETENTION_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while lost.run_until_cancelled(ticks.tick()).await.is_some() {
        if let Some(Err(error)) = lost.run_until_cancelled(retention.trim(Timestamp::now())).await {
            tracing::warn!(%error, "can't remove data that is older than its retention; retrying in a minute");
        }
    }
}
