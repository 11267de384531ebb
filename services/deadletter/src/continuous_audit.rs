//! The continuous audit: a periodic audit of recent posts, reported as metrics.

use std::time::Duration;

use herald_audit::{Auditor, Event, FindingKind, Scope, Summary};
use herald_model::{Channel, time::Timestamp};
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{Metrics, config::ContinuousAudit};

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
    let interval = Duration::from_secs(config.interval_seconds);
    metrics.set_audit_interval(interval);
    metrics.set_audit_alive(Timestamp::now());
    let mut failed = false;
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        let since = Timestamp::now().minus(Duration::from_secs(config.window_seconds));
        // After a failure only a round that ends well counts: one that goes on may fail like the last.
        let on_progress = || {
            if !failed {
                metrics.set_audit_alive(Timestamp::now());
            }
        };
        let round = run_round(&auditor, since, on_progress);
        let Some(outcome) = shutdown.run_until_cancelled(round).await else {
            return;
        };
        failed = outcome.is_err();
        match outcome {
            Ok(summary) => report(&summary, &metrics),
            Err(error) => {
                metrics.continuous_audit_failures.inc();
                tracing::warn!(%error, "a round of the continuous audit failed; the next round retries");
            }
        }
    }
}

async fn run_round(
    auditor: &Auditor,
    since: Timestamp,
    on_progress: impl Fn(),
) -> herald_audit::Result<Summary> {
    let (events, mut received) = mpsc::channel(64);
    let logging = async move {
        let mut first = None;
        let mut count = 0_u64;
        while let Some(event) = received.recv().await {
            let finding = match event {
                Event::Progress(_) => {
                    on_progress();
                    continue;
                }
                Event::Finding(finding) => finding,
            };
            tracing::debug!(
                kind = finding.kind.as_str(),
                post_id = finding.post.map(|post| post.0),
                deliveries = finding.deliveries,
                detail = finding.detail,
                "the continuous audit has a finding"
            );
            count += 1;
            first.get_or_insert(finding);
        }
        if let Some(first) = first {
            tracing::error!(
                findings = count,
                first_kind = first.kind.as_str(),
                first_post_id = first.post.map(|post| post.0),
                first_detail = first.detail,
                "the continuous audit has findings: run `herald audit` to see all, and `herald audit --repair` to repair them"
            );
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
    metrics.set_audit_alive(Timestamp::now());
    metrics.continuous_audit_rounds.inc();
}
