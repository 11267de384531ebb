//! The push service against a real nats-server, the real store and a real receiver.

// Helpers outside a #[test] unwrap as well.
#![allow(clippy::unwrap_used)]

mod config;
mod corrupt;
mod deliver;
mod harness;
mod isolate;
mod redrive;
mod refuse;
mod retry;
