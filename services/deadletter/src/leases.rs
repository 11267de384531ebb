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
                metrics.set_erasures(&[], Timestamp::now());
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
        // This process counts its lease from before the call that renewed it, so the lease ends here before another
        // process can acquire it. The gauge falls then, even while work is still in progress: the gauges of two
        // processes are both 1 at most for the time by which the timer here fires late. The store refuses the writes of
        // such work, or the work asks `HeldLease::lasts`.
        let counted = |lease: HeldLease| {
            let mut work = Box::pin(work(lease.clone()));
            async move {
                self.metrics.set_leading(name, true);
                tokio::select! {
                    () = &mut work => {}
                    () = lease.lost().cancelled() => {
                        // At a shutdown the lease lasts until the work has ended.
                        self.metrics.set_leading(name, lease.lasts());
                        work.await;
                    }
                }
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
    use std::sync::atomic::{AtomicBool, Ordering};

    use async_trait::async_trait;
    use herald_runtime::metrics::Shared;
    use herald_store::{Error, ErrorKind, Fence};
    use parking_lot::Mutex;
    use tokio::sync::mpsc;

    use super::*;

    /// Leases of one holder, which renews them until this is set.
    #[derive(Default)]
    struct Ending(AtomicBool);

    #[async_trait]
    impl Leases for Ending {
        async fn acquire(&self, name: &str, _: &str, _: Duration) -> herald_store::Result<Option<Fence>> {
            Ok((!self.0.load(Ordering::SeqCst)).then(|| Fence {
                name: name.into(),
                token: 1,
            }))
        }

        async fn renew(&self, _: &Fence, _: Duration) -> herald_store::Result<()> {
            if self.0.load(Ordering::SeqCst) {
                Err(Error::new(ErrorKind::Fenced, "it has a newer holder"))
            } else {
                Ok(())
            }
        }

        async fn release(&self, _: &Fence) -> herald_store::Result<()> {
            Ok(())
        }
    }

    /// The work of a process begins, and goes on after it was told to end. Returns the gauge then, and after the end.
    async fn leading_at_the_end(end: impl FnOnce(&Ending, &CancellationToken)) -> [bool; 3] {
        let (shared, leases, stop) = (
            Shared::new(),
            Arc::new(Ending::default()),
            CancellationToken::new(),
        );
        let leased = LeasedWork {
            leases: leases.clone(),
            duration: Duration::from_secs(3),
            metrics: shared.register(Metrics::new),
            stop: stop.clone(),
        };
        let leads = || {
            let text = shared.open_metrics();
            text.contains("herald_deadletter_leading{lease=\"test\"} 1")
        };
        let (told, mut telling) = mpsc::channel::<&'static str>(8);
        let finish = CancellationToken::new();
        let work = |lease: HeldLease| {
            let (told, finish) = (told.clone(), finish.clone());
            async move {
                let _ = told.send("begun").await;
                lease.lost().cancelled().await;
                let _ = told.send("finishing").await;
                finish.cancelled().await;
            }
        };
        let observe = async {
            assert_eq!(telling.recv().await, Some("begun"));
            let begun = leads();
            end(&leases, &stop);
            assert_eq!(telling.recv().await, Some("finishing"));
            // The gauge is set in the same turn of the task.
            tokio::task::yield_now().await;
            let finishing = leads();
            stop.cancel();
            finish.cancel();
            [begun, finishing]
        };
        let ((), [begun, finishing]) = tokio::join!(leased.run("test", work), observe);
        [begun, finishing, leads()]
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_leads_no_more_when_its_lease_is_lost_although_its_work_goes_on() {
        let lost = leading_at_the_end(|leases, _| leases.0.store(true, Ordering::SeqCst)).await;
        assert_eq!(lost, [true, false, false]);
        // At a shutdown it keeps the lease until the work has ended.
        let stopped = leading_at_the_end(|_, stop| stop.cancel()).await;
        assert_eq!(stopped, [true, true, false]);
    }

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
