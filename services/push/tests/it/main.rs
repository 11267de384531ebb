//! Tests of the push service against a real nats-server, the real store and a push sink.

// Test helpers outside #[test] functions unwrap too.
#![allow(clippy::unwrap_used)]

mod claims;
mod config;
mod corrupt;
mod deliver;
mod devices;
mod forward_ledger;
mod harness;
mod isolate;
mod redrive;
mod refuse;
mod retry;
mod slow_hosts;
mod traces;
mod unwritable;
mod wait;
