//! `herald bench`: starts a server, measures it, and checks that no delivery is missing or duplicated.
//!
//! The server is a child process: `herald up` of the same program (see `server.rs`), or several of `herald serve` (see
//! `fleet.rs`).

mod backlog;
mod cpu;
mod deaths;
mod deliveries;
mod dlq;
mod engine;
mod fleet;
mod graph;
mod load;
mod observe;
mod progress;
mod reads;
mod report;
mod server;
mod setup;
mod verify;

use herald_cli::{context::Context, failure::Failure};

/// Measure deliveries per second and latencies, and check that no delivery is missing
#[derive(Debug, clap::Args)]
#[command(
    long_about = deliveries::LONG,
    after_long_help = deliveries::EXAMPLES,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Args {
    #[command(subcommand)]
    benchmark: Option<Benchmark>,

    #[command(flatten)]
    deliveries: deliveries::Args,
}

/// Benchmarks other than the default one.
#[derive(Debug, clap::Subcommand)]
enum Benchmark {
    Backlog(Box<backlog::Args>),
    Deaths(Box<deaths::Args>),
    Dlq(Box<dlq::Args>),
}

/// Runs the selected benchmark. Fails if the server fails, a check fails, or Ctrl-C interrupts it.
pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let measuring = async {
        match args.benchmark {
            None => deliveries::run(args.deliveries, context).await,
            Some(Benchmark::Backlog(args)) => Box::pin(backlog::run(*args, context)).await,
            Some(Benchmark::Deaths(args)) => Box::pin(deaths::run(*args, context)).await,
            Some(Benchmark::Dlq(args)) => Box::pin(dlq::run(*args, context)).await,
        }
    };
    tokio::select! {
        measured = Box::pin(measuring) => measured,
        _ = tokio::signal::ctrl_c() => Err(Failure::failed("interrupted; there is no report".to_owned())),
    }
}
