//! The mesh against a real nats-server.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod consume;
mod faults;
mod harness;
mod history;
mod lag;
mod last;
mod later;
mod letters;
mod publish;
mod topology;
mod trace;
