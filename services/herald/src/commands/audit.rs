//! `herald audit`

use std::time::Duration;

use herald_cli::{
    context::Context,
    failure::{Failure, Kind, printable},
    output::{Output, Show, Table, as_map, channel_name, count, counted},
    time::{self, to_proto},
};
use herald_proto::v1::{
    AuditFinding, AuditFindingKind, AuditProgress, AuditSummary, RunAuditRequest, run_audit_response::Event,
};
use indicatif::ProgressBar;
use jiff::Timestamp;
use serde::Serialize;

/// Findings per kind in text output without --all.
const FINDINGS_SHOWN: u64 = 20;

const LONG: &str = "\
Compares, for every post:
- accepted posts with the archive and the delivery plans;
- planned deliveries with the ledger (targeted = delivered + suppressed + expired + pending + dead, per channel);
- the ledger with every timeline and with the totals of analytics;
- messages that JetStream terminated with the dead letters.

Deliveries in flight are not findings: before the auditor reports a delivery as lost, it checks twice that no message \
still carries it. It reports each missing and each extra delivery.

Without --repair the audit is read-only. The exit code is 1 if there are findings.";

const EXAMPLES: &str = "\
Examples:
  All posts that are retained (30 days by default):
    herald audit

  The posts of the last hour, findings as JSON:
    herald audit --since 1h --output json | jq 'select(.finding)'

  One post; republish its pending deliveries and rebuild timelines:
    herald audit --post 17 --repair";

/// Check that no delivery is missing or extra, and report each that is
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// Only posts accepted at this time or later: an age such as 24h, or an RFC 3339 time [default: all retained posts]
    #[arg(long, value_name = "WHEN", value_parser = time::time_or_age, conflicts_with = "post")]
    since: Option<Timestamp>,

    /// Only the post with this id
    #[arg(long, value_name = "POST", value_parser = clap::value_parser!(u64).range(1..))]
    post: Option<u64>,

    /// Republish pending deliveries that no message carries, and rebuild timelines that miss entries
    ///
    /// Both are idempotent. Run the audit again later to check the result. Dead deliveries are not republished:
    /// use `herald dlq redrive`.
    #[arg(long)]
    repair: bool,

    /// Print all findings, not only the first 20 of each kind; --output json always prints all
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Serialize)]
struct FindingEvent {
    finding: Finding,
}

#[derive(Debug, Serialize)]
struct Finding {
    kind: &'static str,
    post_id: Option<u64>,
    channel: Option<&'static str>,
    user_id: Option<String>,
    chunk_id: Option<String>,
    #[serde(rename = "delivery_count")]
    deliveries: u64,
    detail: String,
    repaired: bool,
    repair_error: Option<String>,
}

impl From<AuditFinding> for Finding {
    fn from(finding: AuditFinding) -> Self {
        let non_empty = |text: String| Some(text).filter(|text| !text.is_empty());
        Self {
            kind: kind_name(finding.kind),
            post_id: Some(finding.post_id).filter(|post| *post > 0),
            channel: Some(finding.channel)
                .filter(|channel| *channel != 0)
                .map(channel_name),
            user_id: non_empty(finding.user_id),
            chunk_id: non_empty(finding.chunk_id),
            deliveries: finding.delivery_count,
            detail: finding.detail,
            repaired: finding.repaired,
            repair_error: non_empty(finding.repair_error),
        }
    }
}

fn kind_name(kind: i32) -> &'static str {
    match AuditFindingKind::try_from(kind).unwrap_or_default() {
        AuditFindingKind::Unspecified => "unknown",
        AuditFindingKind::Unarchived => "unarchived",
        AuditFindingKind::Unplanned => "unplanned",
        AuditFindingKind::Lost => "lost",
        AuditFindingKind::Missing => "missing",
        AuditFindingKind::Extra => "extra",
        AuditFindingKind::Inconsistent => "inconsistent",
        AuditFindingKind::Unexplained => "unexplained",
        AuditFindingKind::Unrecorded => "unrecorded",
        AuditFindingKind::Miscounted => "miscounted",
    }
}

impl Show for FindingEvent {
    fn text(&self) -> String {
        let finding = &self.finding;
        let parts = [
            Some(finding.kind.to_owned()),
            finding.post_id.map(|post| format!("post {post}")),
            finding.channel.map(ToOwned::to_owned),
            finding
                .user_id
                .as_ref()
                .map(|user| format!("user {}", printable(user))),
        ];
        let subject = parts.into_iter().flatten().collect::<Vec<_>>().join(" ");
        let repaired = match (&finding.repair_error, finding.repaired) {
            (_, true) => "; repaired".into(),
            (Some(error), false) => format!("; not repaired: {}", printable(error)),
            (None, false) => String::new(),
        };
        format!("{subject}: {}{repaired}", printable(&finding.detail))
    }
}

#[derive(Debug, Serialize)]
struct SummaryEvent {
    summary: Summary,
}

#[derive(Debug, Serialize)]
struct Summary {
    #[serde(rename = "post_count")]
    posts: u64,
    #[serde(serialize_with = "as_map")]
    channels: Vec<(&'static str, Channel)>,
    #[serde(rename = "timeline_entry_count")]
    timeline_entries: u64,
    #[serde(rename = "backfilled_count")]
    backfilled: u64,
    #[serde(rename = "planning_post_count")]
    planning_posts: u64,
    #[serde(rename = "dead_post_count")]
    dead_posts: u64,
    #[serde(rename = "incomplete_timeline_count")]
    incomplete_timelines: u64,
    #[serde(rename = "finding_count")]
    findings: u64,
    #[serde(serialize_with = "as_map")]
    findings_by_kind: Vec<(&'static str, u64)>,
    #[serde(rename = "repaired_count")]
    repaired: u64,
    seconds: f64,
    deliveries_per_second: f64,
}

#[derive(Debug, Serialize)]
struct Channel {
    #[serde(rename = "targeted_count")]
    targeted: u64,
    #[serde(rename = "delivered_count")]
    delivered: u64,
    #[serde(rename = "suppressed_count")]
    suppressed: u64,
    #[serde(rename = "expired_count")]
    expired: u64,
    #[serde(rename = "pending_count")]
    pending: u64,
    #[serde(rename = "dead_count")]
    dead: u64,
}

impl From<AuditSummary> for Summary {
    fn from(summary: AuditSummary) -> Self {
        let channels = summary.channels.iter().map(|channel| {
            let counts = Channel {
                targeted: channel.targeted_count,
                delivered: channel.delivered_count,
                suppressed: channel.suppressed_count,
                expired: channel.expired_count,
                pending: channel.pending_count,
                dead: channel.dead_count,
            };
            (channel_name(channel.channel), counts)
        });
        let channels: Vec<_> = channels.collect();
        let deliveries: u64 = channels.iter().map(|(_, channel)| channel.targeted).sum();
        let by_kind = summary.findings.iter();
        let by_kind: Vec<_> = by_kind
            .map(|found| (kind_name(found.kind), found.count))
            .collect();
        Self {
            posts: summary.post_count,
            timeline_entries: summary.timeline_entry_count,
            backfilled: summary.backfilled_count,
            planning_posts: summary.planning_post_count,
            dead_posts: summary.dead_post_count,
            incomplete_timelines: summary.incomplete_timeline_count,
            findings: by_kind.iter().map(|(_, count)| count).sum(),
            findings_by_kind: by_kind,
            repaired: summary.repaired_count,
            seconds: summary.seconds,
            deliveries_per_second: (deliveries as f64 / summary.seconds.max(1e-6)).round(),
            channels,
        }
    }
}

impl Show for SummaryEvent {
    fn text(&self) -> String {
        let summary = &self.summary;
        let mut table = Table::new(&[
            "channel",
            ">targeted",
            ">delivered",
            ">suppressed",
            ">expired",
            ">pending",
            ">dead",
        ]);
        for (name, channel) in &summary.channels {
            let figures = [
                channel.targeted,
                channel.delivered,
                channel.suppressed,
                channel.expired,
                channel.pending,
                channel.dead,
            ];
            let mut row = vec![(*name).to_owned()];
            row.extend(figures.map(count));
            table.row(row);
        }
        let mut lines = vec![table.render(), String::new()];
        // That of a moment says nothing.
        let rate = if summary.seconds < 1.0 {
            String::new()
        } else {
            format!(" ({} deliveries/s)", count(summary.deliveries_per_second as u64))
        };
        lines.push(format!(
            "{} and {} compared with the timelines in {}{rate}",
            counted(summary.posts, "post", "posts"),
            counted(summary.timeline_entries, "entry", "entries"),
            time::approximate(Duration::from_secs_f64(summary.seconds.max(0.0))),
        ));
        if summary.planning_posts > 0 {
            lines.push(format!(
                "{} still being planned",
                counted(summary.planning_posts, "post is", "posts are")
            ));
        }
        if summary.dead_posts > 0 {
            lines.push(format!(
                "{} dead; see their dead letters with `herald dlq list`",
                counted(summary.dead_posts, "post is", "posts are")
            ));
        }
        if summary.incomplete_timelines > 0 {
            lines.push(format!(
                "{} not compared, because they may lack entries and nobody has read them since; `herald rebuild timelines` completes them",
                counted(summary.incomplete_timelines, "timeline was", "timelines were")
            ));
        }
        if summary.findings == 0 {
            lines.push("nothing is missing, nothing is extra".into());
        } else {
            let kinds = summary.findings_by_kind.iter();
            let kinds: Vec<_> = kinds
                .map(|(kind, found)| format!("{} {kind}", count(*found)))
                .collect();
            lines.push(format!("findings: {}", kinds.join(", ")));
        }
        lines.join("\n")
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.operator_client().await?;
    // No deadline: the duration depends on the number of posts.
    let request = tonic::Request::new(RunAuditRequest {
        since_time: args.since.map(to_proto),
        post_id: args.post.unwrap_or_default(),
        repair: args.repair,
    });
    let mut events = client.audit().run_audit(request).await?.into_inner();
    let bar = context.output.progress_bar(
        Some(0),
        "{bar:40} {human_pos}/{human_len} posts  {msg}  {eta} left",
    );
    let mut finding_counts = std::collections::HashMap::<i32, u64>::new();
    while let Some(response) = events.message().await? {
        match response.event {
            Some(Event::Progress(progress)) => update_progress(&bar, &progress),
            Some(Event::Finding(finding)) => {
                let number = finding_counts.entry(finding.kind).or_default();
                *number += 1;
                if args.all || context.output.is_json() || *number <= FINDINGS_SHOWN {
                    let event = FindingEvent {
                        finding: finding.into(),
                    };
                    bar.suspend(|| context.output.show(&event))?;
                }
            }
            Some(Event::Summary(summary)) => {
                bar.finish_and_clear();
                return print_summary(summary.into(), &args, context.output);
            }
            None => {}
        }
    }
    Err(Failure::failed(
        "the server ended the audit without a summary: the audit is incomplete, run it again",
    ))
}

fn print_summary(summary: Summary, args: &Args, output: Output) -> Result<(), Failure> {
    let hidden = !args.all
        && summary
            .findings_by_kind
            .iter()
            .any(|(_, count)| *count > FINDINGS_SHOWN);
    let (findings, repaired) = (summary.findings, summary.repaired);
    output.show(&SummaryEvent { summary })?;
    if findings == 0 {
        return Ok(());
    }
    let failure = Failure::new(Kind::Failed, counted(findings, "finding", "findings"));
    Err(if repaired > 0 {
        failure.hint("run the audit again to check the repaired deliveries")
    } else if hidden {
        failure.hint("print all findings with --all")
    } else if args.repair {
        failure
    } else {
        failure.hint("republish pending deliveries and rebuild timelines with --repair")
    })
}

fn update_progress(bar: &ProgressBar, progress: &AuditProgress) {
    bar.set_length(progress.post_count_total);
    bar.set_position(progress.post_count);
    bar.set_message(counted(progress.delivery_count, "delivery", "deliveries"));
}
