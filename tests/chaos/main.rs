//! The fault suite: real processes under load are killed, stopped, cut off and failed, and in the end every promise that
//! was made meanwhile is checked.
//!
//! `cargo test --test chaos` runs the bounded pass; `cargo test --test chaos -- --help` tells what else it can. A run is
//! repeated with the seed that it prints. What is promised, and what was run, is in docs/RELIABILITY.md.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test ends at the first surprise, and says so"
)]

mod checker;
mod cli;
mod controls;
mod faults;
mod log;
mod scenario;
mod workload;
mod world;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

/// The program under test: `$CHAOS_PROGRAM`, for a long run that must not change when cargo builds a newer one, else the
/// one that cargo built.
fn herald_program() -> PathBuf {
    std::env::var_os("CHAOS_PROGRAM")
        .unwrap_or_else(|| env!("CARGO_BIN_EXE_herald-under-test").into())
        .into()
}

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(scenario::run(&arguments))
}
