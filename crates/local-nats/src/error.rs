//! What can go wrong, by kind.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use crate::fetcher::Fetcher;
use crate::locate::BinarySource;
use crate::version::{OLDEST, Version};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why there is no nats-server, or not the one that was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A nats-server was named, and there is no file there.
    #[error("{origin} names {}, where there is no file", path.display())]
    Missing {
        /// The file that was named.
        path: PathBuf,
        /// Who named it.
        origin: BinarySource,
    },

    /// The file doesn't run, or doesn't answer `--version` as a nats-server does.
    #[error("{} ({origin}) is not a nats-server that runs here: {reason}", path.display())]
    NotNats {
        /// The file.
        path: PathBuf,
        /// Who named it.
        origin: BinarySource,
        /// What it did instead.
        reason: String,
    },

    /// The nats-server is older than what Herald needs.
    #[error(
        "{} ({origin}) is nats-server {found}, and Herald needs {OLDEST} or newer: update it, or leave it out so that \
         Herald fetches its own",
        path.display()
    )]
    TooOld {
        /// The file.
        path: PathBuf,
        /// Who named it.
        origin: BinarySource,
        /// Its version.
        found: Version,
    },

    /// There is no nats-server on this machine, and none could be fetched.
    #[error(
        "no nats-server {OLDEST} or newer found, and none could be fetched{}: install one on the PATH, or name it with \
         $NATS_SERVER",
        Attempt::list(attempts)
    )]
    Unavailable {
        /// What was tried, in order.
        attempts: Vec<Attempt>,
    },

    /// The search was given up, by its caller or by a signal that ended a child of it.
    #[error("the search for a nats-server was interrupted")]
    Interrupted,

    /// A path or a value can't be written into nats-server's configuration.
    #[error("{value} can't stand in nats-server's configuration: {reason}")]
    Config {
        /// The value.
        value: String,
        /// Why not.
        reason: &'static str,
    },

    /// Another process that lives runs a nats-server in the same directory.
    #[error("another process runs a nats-server in {}", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },

    /// An earlier parent left a nats-server behind, and it can't be ended.
    #[error("a nats-server left behind in {} (pid {pid}) can't be ended", dir.display())]
    Leftover {
        /// The directory that it serves.
        dir: PathBuf,
        /// Its process id.
        pid: u32,
        /// Why not, where the system says so.
        source: Option<std::io::Error>,
    },

    /// Someone else listens on a port that the configuration names.
    #[error("a port of nats-server is taken by another process; its last log lines:\n{log}")]
    PortTaken {
        /// The last lines of the server's log.
        log: String,
    },

    /// The server ended before it was ready.
    #[error("nats-server ended while starting ({status}); its last log lines:\n{log}")]
    Exited {
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its log.
        log: String,
    },

    /// The server runs, but was not ready in time.
    #[error("nats-server was not ready within {limit:?}: {missing}; its last log lines:\n{log}")]
    NotReady {
        /// How long it was waited for.
        limit: Duration,
        /// What it was that it didn't do.
        missing: String,
        /// The last lines of its log.
        log: String,
    },

    /// The operating system refused something.
    #[error("{action}")]
    Io {
        /// What was attempted.
        action: String,
        /// What the system says.
        source: std::io::Error,
    },
}

impl Error {
    /// For `map_err`: says what was attempted.
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}

/// One way of fetching that failed.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The way.
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
