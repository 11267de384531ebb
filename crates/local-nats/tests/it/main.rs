//! The crate against a real nats-server.

mod locate;
mod parent;
mod server;
