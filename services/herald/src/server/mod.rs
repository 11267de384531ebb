//! A whole mesh in one process: a nats-server as its child, the embedded store, and every service.
//!
//! [`Server::start`] puts it together in the order in which one part needs another; [`Server::run`] waits, and
//! takes it apart in the reverse order, so that nothing is accepted that can't be stored.

mod background;
mod broker;
mod config;
mod services;
mod start;

pub(crate) use config::Config;
pub(crate) use start::{Addresses, Server};
