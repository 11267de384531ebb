//! `herald dlq redrive` and `herald dlq cancel`

use std::time::Duration;

use herald_cli::{
    context::Context,
    failure::{Failure, Kind, printable},
    output::{Show, count, counted},
    time::{self, approximate, duration_to_proto},
};
use herald_proto::v1::{CancelRedriveRequest, DeadLetterOperationState, RedriveDeadLettersRequest};
use serde::Serialize;

use super::{
    dead_letter::{Group, Redrive, groups_and_total, operation_state_name},
    select::{Selection, with_actor},
};

const EXAMPLES: &str = "\
Examples:
  Some dead letters, a group, or all:
    herald dlq redrive 17 18
    herald dlq redrive --group 8c51a3f2b7d90e64
    herald dlq redrive --all

  Count the dead letters that would be redriven:
    herald dlq redrive --stream PUSH --since 6h --dry-run

  At a low rate, with a low failure limit:
    herald dlq redrive --all --rate 200 --max-failures 10

  Pushes that failed too long ago to be sent without a new time to live:
    herald dlq redrive --channel push --push-ttl 1h";

const CANCEL_EXAMPLES: &str = "\
Examples:
  herald dlq cancel 4";

/// Redeliver dead letters to the consumer that failed on them, and to no other
///
/// The server selects the dead letters once, at the start, and runs the redrive in the background: it continues when
/// this command ends and after a restart of the server. It starts with few dead letters in flight, adds more while they
/// succeed, and stops after --max-failures failures. A dead letter that fails again is open again; the exit code is then
/// 1.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// Print the number and groups of the selected dead letters; change nothing
    #[arg(long, short = 'n')]
    dry_run: bool,

    /// The highest rate, dead letters per second, 1 to 5,000
    #[arg(long, value_name = "COUNT", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    rate: u32,

    /// A new time to live for the redriven pushes, from now, 1s to 28d; without it, a push past its time to live is
    /// not sent
    #[arg(long, value_name = "DURATION", value_parser = time::duration)]
    push_ttl: Option<Duration>,

    /// Stop after this number of failures; 0 means no limit and no slow start
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    max_failures: u32,

    // Last, because its heading also applies to the arguments after it.
    #[command(flatten)]
    selection: Selection,
}

/// Cancel a redrive; dead letters in flight complete, unsent ones stay open
#[derive(Debug, clap::Args)]
#[command(after_long_help = CANCEL_EXAMPLES)]
pub(crate) struct CancelArgs {
    /// The id of the redrive, as printed by `dlq redrive` and `dlq log`
    #[arg(value_name = "REDRIVE", value_parser = clap::value_parser!(u64).range(1..))]
    redrive_id: u64,
}

#[derive(Debug, Serialize)]
struct Preview {
    dry_run: bool,
    selected_count: u64,
    /// Open dead letters of the selection that can't be redriven.
    excluded_count: u64,
    /// Dead letters whose pushes are past their time to live.
    expired_count: u64,
    groups: Vec<Group>,
    /// Number of all groups.
    group_count: u64,
}

/// The sentence about pushes that aren't sent, for the end of a line; empty if there are none.
fn expired_text(expired_count: u64, verb: &str) -> String {
    match expired_count {
        0 => String::new(),
        expired => format!(
            "; the pushes of {} {verb} sent",
            counted(expired, "dead letter", "dead letters"),
        ),
    }
}

impl Show for Preview {
    fn text(&self) -> String {
        let excluded = match self.excluded_count {
            0 => String::new(),
            excluded => format!(
                "; {} can't be redriven",
                counted(excluded, "open dead letter", "open dead letters")
            ),
        };
        let total = format!(
            "{} would be redriven{}{excluded}",
            counted(self.selected_count, "dead letter", "dead letters"),
            expired_text(self.expired_count, "have expired and would not be")
        );
        let total = if self.expired_count > 0 {
            format!("{total}\n`--push-ttl 1h` gives the pushes a new time to live")
        } else {
            total
        };
        groups_and_total(&self.groups, self.group_count, &total)
    }
}

impl Show for Redrive {
    fn text(&self) -> String {
        if self.selected_count == 0 {
            let excluded = match self.excluded_count {
                0 => String::new(),
                excluded => format!(
                    "; {} can't be redriven",
                    counted(excluded, "open dead letter", "open dead letters")
                ),
            };
            return format!("nothing to redrive: the selection has no open dead letters{excluded}");
        }
        let mut text = format!("redrive {} {}: {}", self.redrive_id, self.state, self.progress());
        text.push_str(&expired_text(self.expired_count, "had expired and were not"));
        if !self.reason.is_empty() {
            text = format!("{text} ({})", printable(&self.reason));
        }
        if self.excluded_count > 0 {
            let excluded = counted(self.excluded_count, "open dead letter", "open dead letters");
            text = format!("{text}; {excluded} can't be redriven");
        }
        let elapsed = Duration::from_secs_f64(self.elapsed_seconds.max(0.0));
        format!("{text}; {}", approximate(elapsed))
    }
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let selection = args.selection.into_v1()?;
    let client = context.operator_client().await?;
    let request = tonic::Request::new(RedriveDeadLettersRequest {
        selection: Some(selection),
        dry_run: args.dry_run,
        rate_max: args.rate,
        failures_max: Some(args.max_failures),
        push_ttl: args.push_ttl.map(duration_to_proto),
    });
    let mut responses = client
        .dead_letters()
        .redrive_dead_letters(with_actor(request))
        .await?
        .into_inner();
    let no_redrive = || Failure::failed("the server's response has no redrive");
    let first = responses.message().await?.ok_or_else(no_redrive)?;
    let mut redrive = Redrive::from(first.redrive.ok_or_else(no_redrive)?);
    if args.dry_run {
        return context.output.show(&Preview {
            dry_run: true,
            selected_count: redrive.selected_count,
            excluded_count: redrive.excluded_count,
            expired_count: redrive.expired_count,
            groups: first.groups.into_iter().map(Group::from).collect(),
            group_count: first.group_count,
        });
    }
    let template = format!(
        "{{bar:40}} {{percent:>3}}% of {}  {{msg}}",
        count(redrive.selected_count)
    );
    let bar = context
        .output
        .progress_bar(Some(redrive.selected_count), &template);
    loop {
        bar.set_position(redrive.resolved_count + redrive.failed_count + redrive.skipped_count);
        bar.set_message(redrive.progress());
        let next = responses.message().await.map_err(|status| {
            bar.finish_and_clear();
            let id = redrive.redrive_id;
            Failure::from(status).hint(format!(
                "redrive {id} continues on the server; `herald dlq log` shows its progress, \
                 `herald dlq cancel {id}` cancels it"
            ))
        })?;
        match next.and_then(|response| response.redrive) {
            Some(update) => redrive = update.into(),
            None => break,
        }
    }
    bar.finish_and_clear();
    context.output.show(&redrive)?;
    match redrive.failed_count {
        0 if redrive.state == operation_state_name(DeadLetterOperationState::Stopped) => {
            Err(Failure::failed(format!(
                "redrive {} stopped before its end; the dead letters that it has not sent are open",
                redrive.redrive_id
            )))
        }
        0 => Ok(()),
        failed => Err(Failure::new(
            Kind::Failed,
            format!(
                "{} failed again and {} open; see the reasons with `herald dlq groups`",
                counted(failed, "dead letter", "dead letters"),
                if failed == 1 { "is" } else { "are" }
            ),
        )),
    }
}

pub(super) async fn cancel(args: &CancelArgs, context: &Context) -> Result<(), Failure> {
    let client = context.operator_client().await?;
    let request = client.request(CancelRedriveRequest {
        redrive_id: args.redrive_id,
    });
    let response = client
        .dead_letters()
        .cancel_redrive(with_actor(request))
        .await?
        .into_inner();
    let redrive = response
        .redrive
        .ok_or_else(|| Failure::failed("the server's response has no redrive"))?;
    context.output.show(&Redrive::from(redrive))
}
