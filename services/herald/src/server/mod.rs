//! The server of `herald up` and `herald serve`: the services of some roles in one process.
//!
//! With `herald up` the process has all roles, usually with nats-server as a child process and the embedded store. With
//! `herald serve` it has the roles that are named, and shares NATS and the cluster engine of the store with other
//! processes. [`Server::start`] starts the parts in dependency order. [`Server::run`] waits for shutdown and stops them
//! in reverse order: the gateway stops first, so that no accepted post is left without a store.

mod away;
mod background;
mod backup;
mod broker;
mod checks;
mod claim;
mod config;
mod control;
mod data_dir;
mod descriptors;
mod engine;
mod nats_config;
mod peers;
mod prepare;
mod recovering;
mod roles;
mod services;
mod spawn;
mod start;
mod store_config;
mod topology_wait;
mod validate;
mod vapid;

pub(crate) use backup::{
    Progress as BackupProgress, read_manifest as read_backup, restore_files, socket as control_socket,
};
pub(crate) use claim::Claim;
pub(crate) use config::Config;
pub(crate) use recovering::Recovering;
pub(crate) use roles::{Role, Roles};
pub(crate) use start::{Addresses, Server};
