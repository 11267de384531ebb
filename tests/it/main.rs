//! Tests of the whole mesh, with real processes: `herald up`, its nats-server, real devices' endpoints.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test ends at the first surprise"
)]

mod audit;
mod bad_input;
mod configuration;
mod crash;
mod dead_letters;
mod follows;
mod full;
mod main_job;
mod metrics;
mod poison;
mod readme;
mod surface;
mod walls;

/// The program under test.
const HERALD: &str = env!("CARGO_BIN_EXE_herald-under-test");
