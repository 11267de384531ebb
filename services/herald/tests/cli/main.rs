//! The command line: what it makes of its arguments, what it prints, how it ends.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test that fails here should panic"
)]

mod answers;
mod audit;
mod dlq;
mod figures;
mod help;
mod import;
mod push_sink;
mod requests;
mod run;
mod server;
mod streams;
mod terminal;
