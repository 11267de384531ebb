//! `herald rebuild`

use std::time::Duration;

use clap::Subcommand;
use herald_cli::{
    context::Context,
    failure::Failure,
    output::{Show, count, counted},
    time,
};
use herald_proto::v1::{RebuildTimelinesRequest, RebuildTimelinesResponse};
use serde::Serialize;

const EXAMPLES: &str = "\
Examples:
  All timelines, after the timeline store was emptied:
    herald rebuild timelines

  Continue a rebuild that was interrupted:
    herald rebuild timelines --after 120448

  The timelines of two users:
    herald rebuild timelines --user 1 --user 107";

/// Write lost data again
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Timelines(TimelinesArgs),
}

/// Write the entries that are missing on timelines
///
/// With timelines in Redis or Valkey: they are a view of the ledger, and can be made again after a loss. A timeline that
/// is known to be incomplete is also rebuilt when its user reads it. A rebuild can run at any time, and again; it removes
/// nothing. `herald audit` finds timelines that miss entries.
///
/// With the embedded store: if a timeline can't be read because its file is damaged, all timelines are written again from
/// the ledger. Until that is done, reads say that they are being rebuilt.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct TimelinesArgs {
    /// Only the timeline of this user; can be repeated
    #[arg(long = "user", value_name = "USER")]
    users: Vec<String>,

    /// Continue an interrupted rebuild of all timelines after this position
    #[arg(long, value_name = "POSITION", default_value_t = 0, conflicts_with = "users")]
    after: u32,
}

#[derive(Debug, Serialize)]
struct RebuildResult {
    #[serde(rename = "user_count")]
    users: u64,
    #[serde(rename = "timeline_count")]
    timelines: u64,
    #[serde(rename = "entry_count")]
    entries: u64,
    seconds: f64,
}

impl Show for RebuildResult {
    fn text(&self) -> String {
        let checked = counted(self.users, "timeline is complete", "timelines are complete");
        if self.timelines == 0 && self.entries == 0 {
            return format!("nothing to rebuild: {checked}");
        }
        format!(
            "{} rebuilt with {} in {}; {checked}",
            counted(self.timelines, "timeline", "timelines"),
            counted(self.entries, "missing entry", "missing entries"),
            time::approximate(Duration::from_secs_f64(self.seconds.max(0.0))),
        )
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    match args.what {
        What::Timelines(args) => rebuild_timelines(args, context).await,
    }
}

async fn rebuild_timelines(args: TimelinesArgs, context: &Context) -> Result<(), Failure> {
    let client = context.operator_client().await?;
    let resumable = args.users.is_empty();
    // No deadline: the duration depends on the number of users.
    let request = tonic::Request::new(RebuildTimelinesRequest {
        user_ids: args.users,
        after: args.after.into(),
    });
    let mut responses = client.audit().rebuild_timelines(request).await?.into_inner();
    let bar = context.output.progress_bar(
        Some(0),
        "{bar:40} {human_pos}/{human_len} users  {msg}  {eta} left",
    );
    let mut last = RebuildTimelinesResponse::default();
    let failure = loop {
        match responses.message().await {
            Ok(Some(progress)) => {
                bar.set_length(progress.user_count_total);
                bar.set_position(progress.user_count);
                bar.set_message(format!(
                    "{} timelines, {} entries",
                    count(progress.timeline_count),
                    count(progress.entry_count)
                ));
                last = progress;
            }
            Ok(None) if last.done => {
                bar.finish_and_clear();
                return context.output.show(&RebuildResult {
                    users: last.user_count,
                    timelines: last.timeline_count,
                    entries: last.entry_count,
                    seconds: last.seconds,
                });
            }
            Ok(None) => break Failure::failed("the server ended the rebuild before it was done"),
            Err(status) => break Failure::from(status),
        }
    };
    bar.finish_and_clear();
    Err(if resumable && last.position > 0 {
        let hint = format!(
            "continue with `herald rebuild timelines --after {}`",
            last.position
        );
        failure.hint(hint)
    } else {
        failure
    })
}
