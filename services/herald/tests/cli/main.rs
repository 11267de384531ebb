//! Tests of the command line: requests, output and exit codes, against a fake server.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a failing test panics")]

mod audit;
mod dlq;
mod erasures;
mod fake_dead_letters;
mod fake_posts;
mod fake_stats;
mod fake_user_data;
mod help;
mod hostile;
mod import;
mod names;
mod output;
mod push_sink;
mod rebuild;
mod requests;
mod run;
mod secrets;
mod server;
mod streams;
mod terminal;
mod top;
mod why;
