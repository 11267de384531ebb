//! The fanout service against a real nats-server, the real store and the real graph service.

// Helpers outside a #[test] unwrap as well.
#![allow(clippy::unwrap_used)]

mod config;
mod durable;
mod harness;
mod redrive;
