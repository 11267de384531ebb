//! Tests of the service with a real nats-server, the embedded store and files in a temporary directory.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod calls;
mod config;
mod corrupt;
mod faults;
mod forward_totals;
mod harness;
mod once;
mod redrive;
mod replicas;
mod revisions;
