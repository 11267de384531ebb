//! The conservation law, watched all the time: a small audit of the newest posts every now and then, told as metrics.

use std::time::Duration;

use herald_audit::{Auditor, Event, FindingKind, Scope, Summary};
use herald_model::{Channel, time::Timestamp};
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{Metrics, config::ContinuousAudit};

/// Findings of one round that are logged; all of them are counted.
const LOGGED_MAX: u64 = 10;

/// Audits the posts of the last minutes, round after round, until the shutdown. The timelines are left to `herald audit`.
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
        let Some(outcome) = shutdown.run_until_cancelled(round(&auditor, since)).await else {
            return;
        };
        match outcome {
            Ok(summary) => tell(&summary, &metrics),
            Err(error) => {
                metrics.continuous_audit_failures.inc();
                tracing::warn!(%error, "the newest posts were not audited");
            }
        }
    }
}

async fn round(auditor: &Auditor, since: Timestamp) -> herald_audit::Result<Summary> {
    let (events, mut heard) = mpsc::channel(64);
    let listening = async move {
        let mut logged = 0;
        while let Some(event) = heard.recv().await {
            if let Event::Finding(finding) = event {
                logged += 1;
                if logged <= LOGGED_MAX {
                    tracing::error!(
                        kind = finding.kind.as_str(),
                        post_id = finding.post.map(|post| post.0),
                        deliveries = finding.deliveries,
                        detail = finding.detail,
                        "the audit of the newest posts found something"
                    );
                }
            }
        }
    };
    let auditing = async move { auditor.run(Scope::Since(since), false, &events).await };
    tokio::join!(auditing, listening).0
}

fn tell(summary: &Summary, metrics: &Metrics) {
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
            metrics.audited(channel, state, count);
        }
    }
    for kind in FindingKind::ALL {
        metrics.found(kind, summary.findings.get(&kind).copied().unwrap_or_default());
    }
    let oldest = summary
        .oldest_pending_at
        .map_or(Duration::ZERO, |at| Timestamp::now().since(at));
    metrics.oldest_pending(oldest);
    metrics.continuous_audit_rounds.inc();
}
