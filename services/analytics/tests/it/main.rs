//! The service against a real nats-server, the embedded store and files in a temporary folder.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod calls;
mod config;
mod corrupt;
mod faults;
mod harness;
mod once;
mod redrive;
mod revisions;
