//! Shared code of the `herald` commands: global options, the gRPC client, failures with exit codes, and output formats.
//!
//! A command receives a [`context::Context`], prints values that implement [`output::Show`], and returns a
//! [`failure::Failure`] on error.

pub mod caller;
pub mod client;
pub mod confirm;
pub mod context;
pub mod failure;
pub mod output;
pub mod port;
mod printable;
mod table;
pub mod time;
pub mod wrong_port;
