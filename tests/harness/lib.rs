//! Starts real servers for tests and waits for conditions.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails at the first unexpected error"
)]

mod command;
mod forwarder;
mod graph;
mod http_server;
mod jaeger;
mod nats_cluster;
mod port;
mod process;
mod server;
mod wait;

pub use command::{Output, run, run_json};
pub use forwarder::Forwarder;
pub use graph::{Edges, FACEBOOK, facebook_graph};
pub use http_server::serve_http;
pub use jaeger::{Jaeger, Span};
pub use nats_cluster::{NatsCluster, StoreCopy};
pub use port::free_port;
pub use process::Process;
pub use server::{Clients, Herald, Options, ack_wait_variables};
pub use wait::{until, until_some};
