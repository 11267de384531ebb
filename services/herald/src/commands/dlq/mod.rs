//! `herald dlq`

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

const EXAMPLES: &str = "\
Examples:
  What failed, by what and how:
    herald dlq groups

  The dead letters of one group, and one of them in full:
    herald dlq list --group 8c51a3f2b7d90e64
    herald dlq show 17

  The cause is mended: try the group again, first to see how many that are:
    herald dlq redrive --group 8c51a3f2b7d90e64 --dry-run
    herald dlq redrive --group 8c51a3f2b7d90e64

  Who did what:
    herald dlq log";

/// Look at messages that were given up, and redrive or discard them
///
/// A message whose attempts are used up, or that a worker gave up with a reason, becomes a dead letter: with what it
/// carried, why it failed, and who is still owed what it was to bring. Dead letters are kept for 30 days.
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
