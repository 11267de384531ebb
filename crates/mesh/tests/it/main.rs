//! The mesh against a real nats-server.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod auth;
mod consume;
mod delay_queue;
mod faults;
mod harness;
mod history;
mod lag;
mod last;
mod metrics;
mod publish;
mod redrive;
mod snapshot;
mod topology;
mod trace;
mod wait;
