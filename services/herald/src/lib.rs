//! The `herald` program: the server (`herald up`, `herald serve`) and the commands of clients and operators.
//!
//! [`main`] parses the command line, runs the command and maps its result to an exit code. `commands` has one file or
//! folder per command; `server` runs the services of a process. The program is a library so that tests can build it.

mod backoff;
mod cli;
mod commands;
mod demo;
mod doctor;
mod edges;
mod entry;
mod json_error;
mod parse_error;
mod pushes;
mod server;
mod settings;
mod sources;
mod stop;
mod top;

use std::process::ExitCode;

use herald_cli::{context::Context, failure::Failure, wrong_port};
use tracing::Instrument;

use crate::cli::{Cli, Command};

/// Runs the program. `herald --help` documents the exit codes.
pub fn main() -> ExitCode {
    let cli = match Cli::parse_from_words(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return cli::report_parse_error(&error),
    };
    let context = Context::new(cli.global);
    match run_blocking(cli.command, &context) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            context.output.report(&failure);
            failure.exit_code()
        }
    }
}

/// Creates the async runtime and runs a command on it.
fn run_blocking(command: Command, context: &Context) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("the async runtime can't start", &error))?;
    let outcome = runtime.block_on(run(command, context));
    // A thread blocked on standard input must not keep the process alive.
    runtime.shutdown_background();
    outcome
}

/// Runs a command with logs and traces.
async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    let telemetry = match &command {
        // The server initialises logs and traces from its configuration.
        Command::Up(_) | Command::Serve(_) => None,
        _ => Some(context.client_telemetry()?),
    };
    // The root span; the servers continue its trace.
    let span = tracing::info_span!("command", otel.name = command.trace_name(), otel.kind = "client");
    let outcome = match Box::pin(command.run(context)).instrument(span).await {
        Err(failure) => Err(wrong_port::explain(failure, &context.called(), &context.tls_files()).await),
        done => done,
    };
    if let Some(telemetry) = telemetry {
        telemetry.shutdown().await;
    }
    outcome
}
