//! `herald bench`: measures a server of its own, and checks that it lost and repeated nothing.
//!
//! The server is a child process: `up` of the program that this runs in (see `server.rs`).

mod backlog;
mod deliveries;
mod dlq;
mod graph;
mod load;
mod observe;
mod progress;
mod report;
mod server;
mod setup;
mod verify;

use herald_cli::{context::Context, failure::Failure};

/// Measures deliveries a second and latencies, and checks that nothing was lost
#[derive(Debug, clap::Args)]
#[command(
    long_about = deliveries::LONG,
    after_long_help = deliveries::EXAMPLES,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,

    #[command(flatten)]
    deliveries: deliveries::Args,
}

/// What else to measure.
#[derive(Debug, clap::Subcommand)]
enum What {
    Backlog(Box<backlog::Args>),
    Dlq(Box<dlq::Args>),
}

/// Runs the benchmark that was asked for.
pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let measuring = async {
        match args.what {
            None => deliveries::run(args.deliveries, context).await,
            Some(What::Backlog(args)) => backlog::run(*args, context).await,
            Some(What::Dlq(args)) => dlq::run(*args, context).await,
        }
    };
    tokio::select! {
        measured = Box::pin(measuring) => measured,
        _ = tokio::signal::ctrl_c() => Err(Failure::failed("interrupted; nothing was measured".to_owned())),
    }
}
