//! The commands, one file or folder each: arguments, help, calls and output. `herald bench` is in its own crate.

pub(crate) mod audit;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod delete;
pub(crate) mod delivery;
pub(crate) mod device;
pub(crate) mod dlq;
pub(crate) mod follow;
pub(crate) mod following;
pub(crate) mod import;
pub(crate) mod lag;
pub(crate) mod man;
pub(crate) mod post;
pub(crate) mod posts;
pub(crate) mod prefs;
pub(crate) mod push_sink;
mod ready;
pub(crate) mod rebuild;
pub(crate) mod serve;
pub(crate) mod stats;
pub(crate) mod store;
pub(crate) mod timeline;
pub(crate) mod topology;
pub(crate) mod unfollow;
pub(crate) mod up;
pub(crate) mod watch;
pub(crate) mod why;
