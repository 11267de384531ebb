//! The crate against a real nats-server.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "the helpers of tests may panic as the tests do"
)]

mod locate;
mod parent;
mod server;
