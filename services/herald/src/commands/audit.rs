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

/// Findings of one kind that are printed for people, without --all.
const FINDINGS_SHOWN: u64 = 20;

const LONG: &str = "\
Compares, for every post: what was accepted with what is archived and planned; what is planned with what is settled \
(targeted = delivered + suppressed + expired + pending + dead, on each channel); what is settled with every timeline and \
with the totals of analytics; and what JetStream gave up with the dead letters.

What is still on its way is no finding: before anything is called lost, the auditor looks whether a message still carries \
it, and looks again. Each missing or extra delivery is named.

It reads, and changes nothing without --repair.";

const EXAMPLES: &str = "\
Examples:
  Everything that is remembered (30 days, as configured):
    herald audit

  The last hour, in a script; the exit code is 1 when something is wrong:
    herald audit --since 1h --output json | jq 'select(.finding)'

  One post, and send again what is owed:
    herald audit --post 17 --repair";

/// Prove that nothing is missing, or name what is
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// Only posts accepted since: a duration back from now, or a time (RFC 3339)
    #[arg(long, value_name = "WHEN", value_parser = time::moment, conflicts_with = "post")]
    since: Option<Timestamp>,

    /// Only this post
    #[arg(long, value_name = "POST", value_parser = clap::value_parser!(u64).range(1..))]
    post: Option<u64>,

    /// Send again what is owed
    ///
    /// Whatever is sent can come twice without another effect. A later audit shows whether it arrived. What is dead is not
    /// touched: see `herald dlq redrive`.
    #[arg(long)]
    repair: bool,

    /// Print every finding, not only the first of each kind; with --output json all are printed anyway
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Serialize)]
struct Found {
    finding: Finding,
}

#[derive(Debug, Serialize)]
struct Finding {
    kind: &'static str,
    post_id: Option<u64>,
    channel: Option<&'static str>,
    user_id: Option<String>,
    chunk_id: Option<String>,
    deliveries: u64,
    detail: String,
    repaired: bool,
    repair_error: Option<String>,
}

impl From<AuditFinding> for Finding {
    fn from(finding: AuditFinding) -> Self {
        let said = |text: String| Some(text).filter(|text| !text.is_empty());
        Self {
            kind: kind_name(finding.kind),
            post_id: Some(finding.post_id).filter(|post| *post > 0),
            channel: Some(finding.channel)
                .filter(|channel| *channel != 0)
                .map(channel_name),
            user_id: said(finding.user_id),
            chunk_id: said(finding.chunk_id),
            deliveries: finding.delivery_count,
            detail: finding.detail,
            repaired: finding.repaired,
            repair_error: said(finding.repair_error),
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

impl Show for Found {
    fn text(&self) -> String {
        let finding = &self.finding;
        let said = [
            Some(finding.kind.to_owned()),
            finding.post_id.map(|post| format!("post {post}")),
            finding.channel.map(ToOwned::to_owned),
            finding
                .user_id
                .as_ref()
                .map(|user| format!("user {}", printable(user))),
        ];
        let what = said.into_iter().flatten().collect::<Vec<_>>().join(" ");
        let repaired = match (&finding.repair_error, finding.repaired) {
            (_, true) => "; sent again".into(),
            (Some(why), false) => format!("; not repaired: {}", printable(why)),
            (None, false) => String::new(),
        };
        format!("{what}: {}{repaired}", printable(&finding.detail))
    }
}

#[derive(Debug, Serialize)]
struct Summed {
    summary: Summary,
}

#[derive(Debug, Serialize)]
struct Summary {
    posts: u64,
    #[serde(serialize_with = "as_map")]
    channels: Vec<(&'static str, Channel)>,
    timeline_entries: u64,
    backfilled: u64,
    planning_posts: u64,
    dead_posts: u64,
    findings: u64,
    #[serde(serialize_with = "as_map")]
    findings_by_kind: Vec<(&'static str, u64)>,
    repaired: u64,
    seconds: f64,
    deliveries_per_second: f64,
}

#[derive(Debug, Serialize)]
struct Channel {
    targeted: u64,
    delivered: u64,
    suppressed: u64,
    expired: u64,
    pending: u64,
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
            findings: by_kind.iter().map(|(_, count)| count).sum(),
            findings_by_kind: by_kind,
            repaired: summary.repaired_count,
            seconds: summary.seconds,
            deliveries_per_second: (deliveries as f64 / summary.seconds.max(1e-6)).round(),
            channels,
        }
    }
}

impl Show for Summed {
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
        lines.push(format!(
            "{} and {} compared with the timelines in {} ({} deliveries/s)",
            counted(summary.posts, "post", "posts"),
            counted(summary.timeline_entries, "entry", "entries"),
            time::rough(Duration::from_secs_f64(summary.seconds.max(0.0))),
            count(summary.deliveries_per_second as u64),
        ));
        if summary.planning_posts > 0 {
            lines.push(format!(
                "{} still being planned",
                counted(summary.planning_posts, "post is", "posts are")
            ));
        }
        if summary.dead_posts > 0 {
            lines.push(format!(
                "{} given up, as their dead letters say: herald dlq list",
                counted(summary.dead_posts, "post was", "posts were")
            ));
        }
        if summary.findings == 0 {
            lines.push("nothing is missing, nothing is extra".into());
        } else {
            let kinds = summary.findings_by_kind.iter();
            let kinds: Vec<_> = kinds
                .map(|(kind, found)| format!("{} {kind}", count(*found)))
                .collect();
            lines.push(format!("wrong: {}", kinds.join(", ")));
        }
        lines.join("\n")
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
    // An audit takes as long as it takes.
    let request = tonic::Request::new(RunAuditRequest {
        since_time: args.since.map(to_proto),
        post_id: args.post.unwrap_or_default(),
        repair: args.repair,
    });
    let mut news = client.audit().run_audit(request).await?.into_inner();
    let bar = context.output.progress_bar(
        Some(0),
        "{bar:40} {human_pos}/{human_len} posts  {msg}  {eta} left",
    );
    let mut shown = std::collections::HashMap::<i32, u64>::new();
    while let Some(said) = news.message().await? {
        match said.event {
            Some(Event::Progress(progress)) => advance(&bar, &progress),
            Some(Event::Finding(finding)) => {
                let seen = shown.entry(finding.kind).or_default();
                *seen += 1;
                if args.all || context.output.is_json() || *seen <= FINDINGS_SHOWN {
                    let found = Found {
                        finding: finding.into(),
                    };
                    bar.suspend(|| context.output.show(&found))?;
                }
            }
            Some(Event::Summary(summary)) => {
                bar.finish_and_clear();
                return conclude(summary.into(), &args, context.output);
            }
            None => {}
        }
    }
    Err(Failure::failed(
        "the server ended the audit without a summary: it has proved nothing",
    ))
}

fn conclude(summary: Summary, args: &Args, output: Output) -> Result<(), Failure> {
    let hidden = !args.all
        && summary
            .findings_by_kind
            .iter()
            .any(|(_, count)| *count > FINDINGS_SHOWN);
    let (findings, repaired) = (summary.findings, summary.repaired);
    output.show(&Summed { summary })?;
    if findings == 0 {
        return Ok(());
    }
    let failure = Failure::new(Kind::Failed, counted(findings, "finding", "findings"));
    Err(if repaired > 0 {
        failure.hint("what was sent again is checked by the next audit")
    } else if hidden {
        failure.hint("print all of them with --all")
    } else if args.repair {
        failure
    } else {
        failure.hint("send again what is owed with --repair")
    })
}

fn advance(bar: &ProgressBar, progress: &AuditProgress) {
    bar.set_length(progress.post_count_total);
    bar.set_position(progress.post_count);
    bar.set_message(counted(progress.delivery_count, "delivery", "deliveries"));
}
