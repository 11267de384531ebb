//! The server of `herald up` and `herald serve`: the services of some roles in one process.
//!
//! With `herald up` the process has all roles, usually with nats-server as a child process and the embedded store. With
//! `herald serve` it has the roles that are named, and shares NATS and the cluster engine of the store with other
//! processes. [`Server::start`] starts the parts in dependency order. [`Server::run`] waits for shutdown and stops them
//! in reverse order: the gateway stops first, so that no accepted post is left without a store.

mod about;
mod authority;
mod away;
mod background;
mod backup;
mod broker;
mod broker_state;
mod checks;
mod checksums;
mod claim;
mod config;
mod connections;
mod control;
mod control_client;
mod data_dir;
mod descriptors;
mod engine;
mod examining;
mod exposure;
mod nats_config;
mod peers;
mod prepare;
mod process_file;
mod recovering;
mod restoring;
mod roles;
pub(crate) mod root_key;
mod services;
mod spawn;
mod start;
mod storage_key;
mod store_config;
mod tls;
mod topology_wait;
mod validate;
mod vapid;

pub(crate) use about::About;
pub(crate) use backup::{Progress as BackupProgress, read_manifest as read_backup};
pub(crate) use checksums::verify as verify_files;
pub(crate) use claim::Claim;
pub(crate) use config::Config;
pub(crate) use control::{is_too_long as is_socket_too_long, socket as control_socket};
pub(crate) use control_client::{ControlClient, process_name};
pub(crate) use data_dir::create_private_files;
pub(crate) use examining::{Away, Examining, NotCompared, Part, no_answer};
pub(crate) use prepare::rotate_storage_key;
pub(crate) use process_file::ProcessFile;
pub(crate) use recovering::Recovering;
pub(crate) use restoring::restore;
pub(crate) use roles::{Role, Roles};
pub(crate) use start::{Addresses, Server};
pub(crate) use storage_key::read as read_storage_key;
