//! Tests of the complete mesh with real processes: `herald up`, nats-server and device endpoints.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails at the first unexpected error"
)]

mod audit;
mod authentication;
mod backup;
mod bad_days;
mod bad_days_refused;
mod bad_input;
mod certificates;
mod clients;
mod configuration;
mod crash;
mod data_dirs;
mod dead_letters;
mod dependencies;
mod doctor;
mod documents;
mod encryption;
mod exposed;
mod follows;
mod full;
mod future;
mod graph_calls;
mod hostile_clients;
mod import_pressure;
mod least_privilege;
mod main_job;
mod metrics;
mod migrate;
mod poison;
mod private_data;
mod rate_limits;
#[path = "../../services/gateway/tests/it/raw_client.rs"]
mod raw_client;
mod readme;
mod reads;
mod recover;
mod recover_cluster;
mod recover_replicas;
mod round_trip;
mod scaler;
mod secrets;
mod serve;
mod serve_away;
mod serve_cluster;
mod serve_mutual_tls;
mod serve_tls;
mod start;
mod store_faults;
mod surface;
mod top;
mod traces;
mod user_data;

/// The program under test.
const HERALD: &str = env!("CARGO_BIN_EXE_herald-under-test");
