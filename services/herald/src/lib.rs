//! The `herald` program: the server (`up`) and the command line of its clients and operators.
//!
//! [`main`] parses, initialises, runs, and maps the outcome to an exit code; a command is a file in `commands`, and
//! `server` puts the services together. It is a library so that the tests can build the same program.

mod backoff;
mod cli;
mod client;
mod commands;
mod context;
mod edges;
mod failure;
mod output;
mod server;
mod stop;
mod time;

use std::process::ExitCode;

use clap::Parser;

use crate::{cli::Cli, context::Context};

/// The whole program. The outcome of the command is the exit code; `herald --help` documents them.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::report(&error),
    };
    let format = cli.global.output;
    let context = Context::new(cli.global);
    match context::run(commands::run(cli.command, &context)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(format);
            failure.exit_code()
        }
    }
}
