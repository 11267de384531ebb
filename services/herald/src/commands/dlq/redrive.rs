//! `herald dlq redrive` and `herald dlq cancel`

use std::time::Duration;

use herald_cli::{
    context::Context,
    failure::{Failure, Kind, printable},
    output::{Show, count, counted},
    time::rough,
};
use herald_proto::v1::{CancelRedriveRequest, RedriveDeadLettersRequest};
use serde::Serialize;

use super::{
    dead_letter::{Group, Redrive, group_table},
    select::{Selection, signed},
};

const EXAMPLES: &str = "\
Examples:
  Some dead letters, or a group, or everything:
    herald dlq redrive 17 18
    herald dlq redrive --group 8c51a3f2b7d90e64
    herald dlq redrive --all

  How many would that be, and what?
    herald dlq redrive --stream PUSH --since 6h --dry-run

  Gently, and not for long if it isn't mended:
    herald dlq redrive --all --rate 200 --max-failures 10";

const CANCEL_EXAMPLES: &str = "\
Examples:
  herald dlq cancel 4";

/// Send dead letters once more to the consumer that failed on them
///
/// Which dead letters is decided once, at the beginning. The server then does it by itself: it goes on when this command
/// ends, and when the server itself dies and comes back. It begins with a few and sends more the longer none fails
/// again, and stops when --max-failures have. The exit code is 1 when dead letters failed again; they are open again.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    selection: Selection,

    /// Only tell how many dead letters and which groups; nothing is changed
    #[arg(long, short = 'n')]
    dry_run: bool,

    /// Dead letters a second, at most 5,000
    #[arg(long, value_name = "COUNT", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    rate: u32,

    /// Stop when this many have failed again; 0: never
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    max_failures: u32,
}

/// Stop a redrive; dead letters that were sent already go on, the others stay open
#[derive(Debug, clap::Args)]
#[command(after_long_help = CANCEL_EXAMPLES)]
pub(crate) struct CancelArgs {
    /// The redrive, as `redrive` and `log` name it
    #[arg(value_name = "REDRIVE", value_parser = clap::value_parser!(u64).range(1..))]
    redrive_id: u64,
}

#[derive(Debug, Serialize)]
struct Plan {
    dry_run: bool,
    dead_letters: u64,
    /// Open, and no redrive can help them.
    excluded: u64,
    groups: Vec<Group>,
}

impl Show for Plan {
    fn text(&self) -> String {
        let excluded = match self.excluded {
            0 => String::new(),
            some => format!(
                "; {} can't be",
                counted(some, "open dead letter", "open dead letters")
            ),
        };
        let would = format!(
            "{} would be redriven{excluded}",
            counted(self.dead_letters, "dead_letter", "dead_letters")
        );
        if self.groups.is_empty() {
            would
        } else {
            format!("{}\n\n{would}", group_table(&self.groups))
        }
    }
}

impl Show for Redrive {
    fn text(&self) -> String {
        let mut text = format!("redrive {} {}: {}", self.redrive_id, self.state, self.outcome());
        if !self.reason.is_empty() {
            text = format!("{text} ({})", printable(&self.reason));
        }
        if self.excluded > 0 {
            let excluded = counted(self.excluded, "open dead letter", "open dead letters");
            text = format!("{text}; {excluded} can't be redriven");
        }
        let elapsed = Duration::from_secs_f64(self.elapsed_seconds.max(0.0));
        format!("{text}; {}", rough(elapsed))
    }
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let selection = args.selection.into_v1()?;
    let client = context.client().await?;
    let request = tonic::Request::new(RedriveDeadLettersRequest {
        selection: Some(selection),
        dry_run: args.dry_run,
        rate_max: args.rate,
        failures_max: Some(args.max_failures),
    });
    let mut answers = client
        .dead_letters()
        .redrive_dead_letters(signed(request))
        .await?
        .into_inner();
    let nothing = || Failure::failed("the server answered without the redrive");
    let first = answers.message().await?.ok_or_else(nothing)?;
    let mut redrive = Redrive::from(first.redrive.ok_or_else(nothing)?);
    if args.dry_run {
        return context.output.show(&Plan {
            dry_run: true,
            dead_letters: redrive.dead_letters,
            excluded: redrive.excluded,
            groups: first.groups.into_iter().map(Group::from).collect(),
        });
    }
    let template = format!(
        "{{bar:40}} {{percent:>3}}% of {}  {{msg}}",
        count(redrive.dead_letters)
    );
    let bar = context.output.progress_bar(Some(redrive.dead_letters), &template);
    loop {
        bar.set_position(redrive.resolved + redrive.failed + redrive.skipped);
        bar.set_message(redrive.outcome());
        let next = answers.message().await.map_err(|status| {
            bar.finish_and_clear();
            let id = redrive.redrive_id;
            Failure::from(status).hint(format!(
                "redrive {id} goes on in the server: `herald dlq log` tells how far it is, `herald dlq cancel {id}` stops it"
            ))
        })?;
        match next.and_then(|answer| answer.redrive) {
            Some(now) => redrive = now.into(),
            None => break,
        }
    }
    bar.finish_and_clear();
    context.output.show(&redrive)?;
    match redrive.failed {
        0 => Ok(()),
        failed => Err(Failure::new(
            Kind::Failed,
            format!(
                "{} failed again and {} open; `herald dlq groups` says why",
                counted(failed, "dead_letter", "dead_letters"),
                if failed == 1 { "is" } else { "are" }
            ),
        )),
    }
}

pub(super) async fn cancel(args: &CancelArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
    let request = client.request(CancelRedriveRequest {
        redrive_id: args.redrive_id,
    });
    let answer = client
        .dead_letters()
        .cancel_redrive(signed(request))
        .await?
        .into_inner();
    let redrive = answer
        .redrive
        .ok_or_else(|| Failure::failed("the server answered without the redrive"))?;
    context.output.show(&Redrive::from(redrive))
}
