//! The gateway against a real nats-server and the embedded store.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod accounts;
mod cut_off;
mod deletions;
mod deliveries;
mod graph;
mod harness;
mod posts;
mod redrive;
mod startup;
mod surface;
mod timelines;
mod watches;
