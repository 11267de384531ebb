//! Tests with real servers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic"
)]

mod parent;
mod postgres;
mod redis;
