//! Tests of the timeline service against a real nats-server and the real store.

// Test helpers outside #[test] functions unwrap too.
#![allow(clippy::unwrap_used)]

mod backfill;
mod config;
mod faulty;
mod harness;
mod isolate;
mod redrive;
mod report;
mod suppressed;
