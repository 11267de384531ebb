//! What cargo itself can't: `cargo xtask --help`.

mod buf;
mod failpoints;

use clap::{Parser, Subcommand};

/// Tasks of the project that cargo itself can't do.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run buf, the linter of the .proto files; fetched once into target/tools
    Buf {
        /// Its arguments, as `lint` or `format --diff`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        arguments: Vec<String>,
    },
    /// Check that the program that is shipped has no failpoints in it
    Failpoints,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Buf { arguments } => buf::run(&arguments),
        Task::Failpoints => failpoints::run(),
    }
}
