//! The server of `herald up`: nats-server as a child process, the embedded store, and all services in one process.
//!
//! [`Server::start`] starts the parts in dependency order. [`Server::run`] waits for shutdown and stops them in reverse
//! order: the gateway stops first, so that no accepted post is left without a store.

mod background;
mod broker;
mod config;
mod services;
mod start;
mod validate;

pub(crate) use config::Config;
pub(crate) use start::{Addresses, Claim, Server};
