//! The fault suite: injects faults into real processes under load, then checks every answer that clients got.
//!
//! `cargo test --workspace --test chaos` runs the bounded pass; with `-- --help` it lists the options. The printed
//! seed repeats a run. The promises and the method are in docs/RELIABILITY.md.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails at the first unexpected error, and prints its log"
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

/// The program under test: `$CHAOS_PROGRAM`, for long runs while cargo rebuilds, else the one that cargo built.
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
