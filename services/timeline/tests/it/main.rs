//! The timeline service against a real nats-server and the real store.

// Helpers outside a #[test] unwrap as well.
#![allow(clippy::unwrap_used)]

mod config;
mod faulty;
mod harness;
mod isolate;
mod redrive;
mod report;
