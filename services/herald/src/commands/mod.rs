//! The commands, one a file: its arguments, its help, what it does, what it prints.

pub(crate) mod audit;
pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod delete;
pub(crate) mod delivery;
mod demo;
pub(crate) mod device;
pub(crate) mod dlq;
pub(crate) mod follow;
pub(crate) mod import;
pub(crate) mod lag;
pub(crate) mod man;
pub(crate) mod post;
pub(crate) mod prefs;
pub(crate) mod push_sink;
pub(crate) mod stats;
pub(crate) mod timeline;
pub(crate) mod unfollow;
pub(crate) mod up;
pub(crate) mod watch;

use tracing::Instrument;

use crate::{cli::Command, context::Context, failure::Failure};

/// Runs the command that was given.
pub(crate) async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    let telemetry = match &command {
        // A server sets up its own logs and traces, from its configuration.
        Command::Up(_) => None,
        _ => Some(context.client_telemetry()?),
    };
    // The root of the trace that the servers go on with.
    let span = tracing::info_span!("command", otel.name = command.trace_name(), otel.kind = "client");
    let outcome = Box::pin(dispatch(command, context)).instrument(span).await;
    if let Some(telemetry) = telemetry {
        telemetry.shutdown().await;
    }
    outcome
}

async fn dispatch(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::Post(args) => post::run(args, context).await,
        Command::Delete(args) => delete::run(args, context).await,
        Command::Follow(args) => follow::run(args, context).await,
        Command::Unfollow(args) => unfollow::run(args, context).await,
        Command::Import(args) => import::run(args, context).await,
        Command::Device(args) => device::run(args, context).await,
        Command::Prefs(args) => prefs::run(args, context).await,
        Command::Timeline(args) => timeline::run(args, context).await,
        Command::Watch(args) => watch::run(args, context).await,
        Command::Delivery(args) => delivery::run(args, context).await,
        Command::Stats(args) => stats::run(args, context).await,
        Command::Dlq(args) => Box::pin(dlq::run(args, context)).await,
        Command::Audit(args) => audit::run(args, context).await,
        Command::Lag(args) => lag::run(args, context).await,
        Command::PushSink(args) => push_sink::run(args, context).await,
        Command::Bench(args) => Box::pin(bench::run(*args, context)).await,
        Command::Config(args) => config::run(&args, context),
        Command::Up(args) => Box::pin(up::run(*args, context)).await,
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args, context),
    }
}
