//! The service against a real nats-server and the embedded store.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod calls;
mod config;
mod corrupt;
mod harness;
mod letters;
mod redrive;
mod removed;
mod restart;
