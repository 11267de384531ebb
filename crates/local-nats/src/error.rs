//! The error type of this crate.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use crate::fetcher::Fetcher;
use crate::locate::BinarySource;
use crate::version::{OLDEST, Version};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Error of finding, fetching or running a nats-server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The named nats-server file does not exist.
    #[error("the nats-server {}, named by {origin}, does not exist", path.display())]
    Missing {
        /// Path of the missing file.
        path: PathBuf,
        /// Where the path comes from.
        origin: BinarySource,
    },

    /// The file can't be run, or its reply to `--version` is not that of a nats-server.
    #[error("{} ({origin}) is not a nats-server for this machine: {reason}", path.display())]
    NotNats {
        /// Path of the file.
        path: PathBuf,
        /// Where the path comes from.
        origin: BinarySource,
        /// Why it is not usable.
        reason: String,
    },

    /// The nats-server is older than Herald requires.
    #[error(
        "{} ({origin}) is nats-server {found}, and Herald requires {OLDEST} or newer: update it, or don't name it, so \
         that Herald fetches its own",
        path.display()
    )]
    TooOld {
        /// Path of the file.
        path: PathBuf,
        /// Where the path comes from.
        origin: BinarySource,
        /// Its version.
        found: Version,
    },

    /// No nats-server was found on this machine, and none could be fetched.
    #[error(
        "no nats-server {OLDEST} or newer found, and none could be fetched{}: install one on the PATH, or set \
         $NATS_SERVER to its path",
        Attempt::list(attempts)
    )]
    Unavailable {
        /// The failed attempts, in order.
        attempts: Vec<Attempt>,
    },

    /// The search was cancelled by its caller, or a signal ended one of its commands.
    #[error("the search for a nats-server was interrupted")]
    Interrupted,

    /// A path or a value can't be written to the nats-server configuration file.
    #[error("can't write {value:?} to the nats-server configuration file: {reason}")]
    Config {
        /// The value.
        value: String,
        /// Why it can't be written.
        reason: &'static str,
    },

    /// Another running process has a nats-server in the same directory.
    #[error("another process runs a nats-server in {}: stop that process, or use another directory", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },

    /// A nats-server of an earlier parent process still runs in the directory and can't be stopped.
    #[error(
        "can't stop the nats-server (pid {pid}) that an earlier process left in {}: stop it, then start again",
        dir.display()
    )]
    Leftover {
        /// The directory of the server.
        dir: PathBuf,
        /// The process id of the server.
        pid: u32,
        /// Error of sending the signal; `None` if the server ignored it.
        source: Option<std::io::Error>,
    },

    /// Another process listens on the port for clients or for monitoring.
    #[error("port {port} of nats-server is in use by another process")]
    PortTaken {
        /// The port.
        port: u16,
    },

    /// The server exited before it was ready.
    #[error("nats-server exited during its start ({status}); last log lines:\n{log}")]
    Exited {
        /// Its exit status.
        status: ExitStatus,
        /// The last lines of the server's log.
        log: String,
    },

    /// The server was not ready within [`Config::start_limit`](crate::Config::start_limit).
    #[error("nats-server was not ready within {limit:?}: {missing}; last log lines:\n{log}")]
    NotReady {
        /// The timeout.
        limit: Duration,
        /// The readiness check that failed.
        missing: String,
        /// The last lines of the server's log.
        log: String,
    },

    /// An operation of the operating system failed.
    #[error("can't {action}")]
    Io {
        /// The operation, as an infinitive.
        action: String,
        /// Error of the system.
        source: std::io::Error,
    },
}

impl Error {
    /// Maps an I/O error, for `map_err`. `action` is an infinitive: "open the log".
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}

/// A failed attempt to fetch a nats-server.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The fetcher.
    pub fetcher: Fetcher,
    /// Why it failed.
    pub reason: String,
}

impl Attempt {
    fn list(attempts: &[Self]) -> String {
        if attempts.is_empty() {
            return String::new();
        }
        let attempts: Vec<_> = attempts
            .iter()
            .map(|a| format!("{}: {}", a.fetcher, a.reason))
            .collect();
        format!(" ({})", attempts.join("; "))
    }
}
