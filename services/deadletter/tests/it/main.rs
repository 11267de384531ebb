//! Tests of the service with a real nats-server and the embedded store.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod calls;
mod config;
mod corrupt;
mod dead_letters;
mod erasures;
mod expired;
mod failed_operations;
mod harness;
mod rebuild;
mod redrive;
mod removed;
mod replicas;
mod restart;
