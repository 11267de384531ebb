//! Tests of the command line: requests, output and exit codes, against a fake server.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a failing test panics")]

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
