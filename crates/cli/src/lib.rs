//! What the commands of `herald` share: the global options, the connection to a server, failures with their exit codes,
//! and the two formats of output.
//!
//! A command gets a [`context::Context`], prints what implements [`output::Show`], and returns a [`failure::Failure`].

pub mod client;
pub mod context;
pub mod failure;
pub mod output;
pub mod time;
