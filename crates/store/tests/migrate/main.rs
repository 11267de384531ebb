//! The move of an embedded store to the cluster engine, on private PostgreSQL and Redis servers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic"
)]

mod damage;
mod fill;
mod moves;
mod posts;
mod records;
mod refused;
mod sealed;
mod world;

use std::time::Duration;

const DAY: Duration = Duration::from_hours(24);
