//! The work of which all instances together run one: redrives, erasures, the continuous audit and retention.

use std::{sync::Arc, time::Duration};

use herald_audit::Auditor;
use herald_model::time::Timestamp;
use herald_store::{ClockCheck, HeldLease, LeaseHolder, Leases, RETENTION_LEASE, Retention};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::{
    Metrics,
    config::ContinuousAudit,
    continuous_audit,
    erasures::{self, ErasureRunner},
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

    /// Runs erasures of users.
    pub(crate) async fn run_erasures(self, runner: ErasureRunner) {
        self.run(erasures::LEASE, |lease| {
            let (runner, metrics) = (runner.clone(), self.metrics.clone());
            async move {
                lease.lost().run_until_cancelled(runner.lead()).await;
                metrics.set_erasures(0);
            }
        })
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
            let metrics = self.metrics.clone();
            async move { trim_each_minute(&*retention, &metrics, lease.lost()).await }
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

async fn trim_each_minute(retention: &dyn Retention, metrics: &Metrics, lost: &CancellationToken) {
    let mut ticks = tokio::time::interval(RETENTION_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_paused = false;
    while lost.run_until_cancelled(ticks.tick()).await.is_some() {
        let trim = trim(retention, Timestamp::now(), &mut was_paused);
        match lost.run_until_cancelled(trim).await {
            Some(Ok(())) => {
                metrics.retention_paused.set(was_paused.into());
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "can't remove data that is older than its retention; retrying in a minute");
            }
            None => {}
        }
    }
    metrics.retention_paused.set(0);
}

/// Removes what is past its retention at `now`, unless the clock has jumped.
async fn trim(
    retention: &dyn Retention,
    now: Timestamp,
    was_paused: &mut bool,
) -> Result<(), herald_store::Error> {
    let check = retention.observe_clock(now).await?;
    let seconds = |at: Timestamp| at.0 / 1_000_000;
    match check {
        ClockCheck::Jumped { from, until } => tracing::warn!(
            clock_unix_s = seconds(now),
            expected_unix_s = seconds(from),
            until_unix_s = seconds(until),
            "the clock jumped, or nothing ran for a while: no data is removed until the clock has gone on steadily; check \
             the time of this machine (and of PostgreSQL)"
        ),
        ClockCheck::Settling { until } if !*was_paused => tracing::warn!(
            until_unix_s = seconds(until),
            "the clock jumped before: no data is removed until it has gone on steadily"
        ),
        ClockCheck::Steady if *was_paused => {
            tracing::info!("the clock has gone on steadily: data past its retention is removed again");
        }
        ClockCheck::Settling { .. } | ClockCheck::Steady => {}
    }
    *was_paused = check != ClockCheck::Steady;
    if *was_paused {
        return Ok(());
    }
    retention.trim(now).await
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use parking_lot::Mutex;

    use super::*;

    /// A store whose clock check answers this, and that records the calls of `trim`.
    struct Checked(ClockCheck, Mutex<Vec<Timestamp>>);

    #[async_trait]
    impl Retention for Checked {
        async fn trim(&self, now: Timestamp) -> herald_store::Result<()> {
            self.1.lock().push(now);
            Ok(())
        }

        async fn observe_clock(&self, _: Timestamp) -> herald_store::Result<ClockCheck> {
            Ok(self.0)
        }
    }

    #[tokio::test]
    async fn nothing_is_removed_after_a_jump_of_the_clock() {
        let (now, until) = (Timestamp(7_000_000), Timestamp(9_000_000));
        for (check, trims) in [
            (ClockCheck::Steady, vec![now]),
            (ClockCheck::Settling { until }, vec![]),
            (
                ClockCheck::Jumped {
                    from: Timestamp(1),
                    until,
                },
                vec![],
            ),
        ] {
            let retention = Checked(check, Mutex::default());
            let mut was_paused = false;
            trim(&retention, now, &mut was_paused).await.unwrap();
            assert_eq!(*retention.1.lock(), trims, "{check:?}");
            assert_eq!(was_paused, trims.is_empty());
        }
    }
}
