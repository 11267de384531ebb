//! The continuous audit: a periodic audit of recent posts, reported as metrics.

use std::time::Duration;

use herald_audit::{Auditor, Event, FindingKind, Scope, Summary};
use herald_model::{Channel, time::Timestamp};
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{Metrics, config::ContinuousAudit};

/// Findings of one round that are logged. All of them are counted.
const LOGGED_MAX: u64 = 10;

/// Audits the posts of the configured window at each interval until the shutdown. It skips the timelines; `herald
/// audit` checks them.
pub(crate) async fn run(
    config: ContinuousAudit,
    mut auditor: Auditor,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    auditor.limits.timelines = false;
    auditor.limits.work_share = f64::from(config.work_percent_max) / 100.0;
    let mut ticks = tokio::time::interval(Duration::from_secs(config.interval_seconds));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        let since = Timestamp::now().minus(Duration::from_secs(config.window_seconds));
        let Some(outcome) = shutdown.run_until_cancelled(run_round(&auditor, since)).await else {
            return;
        };
        match outcome {
            Ok(summary) => report(&summary, &metrics),
            Err(error) => {
                metrics.continuous_audit_failures.inc();
                tracing::warn!(%error, "a round of the continuous audit failed; the next round retries");
            }
        }
    }
}

async fn run_round(auditor: &Auditor, since: Timestamp) -> herald_audit::Result<Summary> {
    let (events, mut received) = mpsc::channel(64);
    let logging = async move {
        let mut logged = 0;
        while let Some(event) = received.recv().await {
            if let Event::Finding(finding) = event {
                logged += 1;
                if logged <= LOGGED_MAX {
                    tracing::error!(
                        kind = finding.kind.as_str(),
                        post_id = finding.post.map(|post| post.0),
                        deliveries = finding.deliveries,
                        detail = finding.detail,
                        "the continuous audit has a finding"
                    );
                }
            }
        }
    };
    let auditing = async move { auditor.run(Scope::Since(since), false, &events).await };
    tokio::join!(auditing, logging).0
}

fn report(summary: &Summary, metrics: &Metrics) {
    for (channel, sums) in [
        (Channel::Timeline, &summary.timeline),
        (Channel::Push, &summary.push),
    ] {
        for (state, count) in [
            ("targeted", sums.targeted),
            ("delivered", sums.delivered),
            ("suppressed", sums.suppressed),
            ("expired", sums.expired),
            ("pending", sums.pending),
            ("dead", sums.dead),
        ] {
            metrics.set_audited(channel, state, count);
        }
    }
    for kind in FindingKind::ALL {
        metrics.set_findings(kind, summary.findings.get(&kind).copied().unwrap_or_default());
    }
    let oldest = summary
        .oldest_pending_at
        .map_or(Duration::ZERO, |at| Timestamp::now().since(at));
    metrics.set_oldest_pending(oldest);
    metrics.continuous_audit_rounds.inc();
}
