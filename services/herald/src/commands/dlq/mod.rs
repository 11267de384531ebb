//! `herald dlq`: dead letters.

mod dead_letter;
mod discard;
mod groups;
mod list;
mod log;
mod operations;
mod redrive;
mod select;
mod show;

use clap::Subcommand;
use herald_cli::{context::Context, failure::Failure};

pub(crate) use select::with_actor;

const EXAMPLES: &str = "\
Examples:
  Count open dead letters by reason:
    herald dlq groups

  List the dead letters of a group, and show one of them:
    herald dlq list --group 8c51a3f2b7d90e64
    herald dlq show 17

  After the cause is fixed: check how many a redrive selects, then redrive the group:
    herald dlq redrive --group 8c51a3f2b7d90e64 --dry-run
    herald dlq redrive --group 8c51a3f2b7d90e64

  Show the audit log:
    herald dlq log";

/// Inspect, redrive and discard dead letters
///
/// A message whose attempts are used up, or that a worker terminates with a reason, becomes a dead letter. It has the
/// payload, the reason and the undelivered recipients of the message. Dead letters are kept for 30 days by default.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    List(list::Args),
    Groups(groups::Args),
    Show(show::Args),
    Redrive(redrive::Args),
    Cancel(redrive::CancelArgs),
    Discard(discard::Args),
    Log(log::Args),
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    match args.action {
        Action::List(args) => list::run(args, context).await,
        Action::Groups(args) => groups::run(args, context).await,
        Action::Show(args) => show::run(&args, context).await,
        Action::Redrive(args) => redrive::run(args, context).await,
        Action::Cancel(args) => redrive::cancel(&args, context).await,
        Action::Discard(args) => discard::run(args, context).await,
        Action::Log(args) => log::run(args, context).await,
    }
}
