//! Tests with a real nats-server.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic"
)]

mod locate;
mod parent;
mod server;
