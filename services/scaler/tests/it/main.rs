//! Tests of the scaler against a real nats-server, through gRPC as KEDA calls it.

// Test helpers outside #[test] functions unwrap too.
#![allow(clippy::unwrap_used)]

mod activity;
mod failures;
mod harness;
mod triggers;
mod work;
