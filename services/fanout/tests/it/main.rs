//! Tests of the fanout service against a real nats-server, the real store and the real graph service.

// Test helpers outside #[test] functions unwrap too.
#![allow(clippy::unwrap_used)]

mod config;
mod corrupt;
mod durable;
mod gate;
mod graph;
mod harness;
mod redrive;
