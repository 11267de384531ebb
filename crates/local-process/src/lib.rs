//! A server program as a child process: started with its output in a log file, signalled without a race about its pid,
//! ended with its parent.
//!
//! `crates/local-nats` and `crates/local-stores` run their servers with it.

mod log;
mod process;

pub use log::Log;
pub use process::{Process, command};
pub use rustix::process::Signal;
