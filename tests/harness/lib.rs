//! Starts real servers for the tests and waits for conditions.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test ends at the first surprise"
)]

mod command;
mod graph;
mod server;
mod wait;

pub use command::{Output, json, output};
pub use graph::{Edges, FACEBOOK, facebook};
pub use server::{Clients, Herald, Options, ack_wait_seconds};
pub use wait::{until, until_some};
