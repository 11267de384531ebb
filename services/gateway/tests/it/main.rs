//! Tests of the gateway with a real nats-server and the embedded store.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod accounts;
mod deadlines;
mod deletions;
mod deliveries;
mod devices;
mod erased_authors;
mod graph;
mod harness;
mod hostile_clients;
mod partitioned_server;
mod ports;
mod posts;
mod quotas;
mod rate_limits;
mod raw_client;
mod readiness;
mod reads;
mod redrive;
mod startup;
mod store_away;
mod surface;
mod timelines;
mod watches;
mod web;
