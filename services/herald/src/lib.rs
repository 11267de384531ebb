//! The `herald` program: the server (`up`) and the command line of its clients and operators.
//!
//! [`main`] parses, initialises, runs, and maps the outcome to an exit code; a command is a file in `commands`, and
//! `server` puts the services together. It is a library so that the tests can build the same program.

mod backoff;
mod cli;
mod commands;
mod demo;
mod edges;
mod entry;
mod server;
mod settings;
mod stop;

use std::process::ExitCode;

use clap::Parser;
use herald_cli::{context::Context, failure::Failure};
use tracing::Instrument;

use crate::cli::{Cli, Command};

/// The whole program. The outcome of the command is the exit code; `herald --help` documents them.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::report(&error),
    };
    let context = Context::new(cli.global);
    match start(cli.command, &context) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            context.output.report(&failure);
            failure.exit_code()
        }
    }
}

/// Runs a command on a runtime of its own.
fn start(command: Command, context: &Context) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("the async runtime can't start", &error))?;
    let outcome = runtime.block_on(run(command, context));
    // A thread that still waits for standard input must not hold the process.
    runtime.shutdown_background();
    outcome
}

/// Runs a command, with its logs and traces.
async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    let telemetry = match &command {
        // A server sets up its own logs and traces, from its configuration.
        Command::Up(_) => None,
        _ => Some(context.client_telemetry()?),
    };
    // The root of the trace that the servers go on with.
    let span = tracing::info_span!("command", otel.name = command.trace_name(), otel.kind = "client");
    let outcome = Box::pin(command.run(context)).instrument(span).await;
    if let Some(telemetry) = telemetry {
        telemetry.shutdown().await;
    }
    outcome
}
