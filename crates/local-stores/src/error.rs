//! The error type of this crate.

use std::process::ExitStatus;
use std::time::Duration;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Error of finding or running a server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The program is not on this machine.
    #[error("no {program} found (searched in {searched}): {hint}")]
    Missing {
        /// Name of the program.
        program: &'static str,
        /// Where it was searched.
        searched: String,
        /// What to do.
        hint: &'static str,
    },

    /// The server exited before it was ready.
    #[error("{program} exited during its start ({status}); last log lines:\n{log}")]
    Exited {
        /// Name of the program.
        program: &'static str,
        /// Its exit status.
        status: ExitStatus,
        /// The last lines of the server's log.
        log: String,
    },

    /// The server was not ready in time.
    #[error("{program} was not ready within {limit:?} ({reason}); last log lines:\n{log}")]
    NotReady {
        /// Name of the program.
        program: &'static str,
        /// The timeout.
        limit: Duration,
        /// The last answer of the server.
        reason: String,
        /// The last lines of the server's log.
        log: String,
    },

    /// A program that prepares the server failed.
    #[error("{program} failed ({status}): {output}")]
    Failed {
        /// Name of the program.
        program: &'static str,
        /// Its exit status.
        status: ExitStatus,
        /// Its error output.
        output: String,
    },

    /// PostgreSQL refuses to run as root, and no other user was found.
    #[error(
        "PostgreSQL refuses to run as root, and /etc/passwd has neither a user postgres nor a user nobody: create one"
    )]
    NoUser,

    /// PostgreSQL refused a command.
    #[error("PostgreSQL refused to {action}")]
    Postgres {
        /// The command, as an infinitive.
        action: String,
        /// Its error.
        source: Box<sqlx::Error>,
    },

    /// Redis refused a command.
    #[error("Redis refused to {action}")]
    Redis {
        /// The command, as an infinitive.
        action: String,
        /// Its error.
        source: Box<redis::RedisError>,
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

    pub(crate) fn postgres(action: impl Into<String>) -> impl FnOnce(sqlx::Error) -> Self {
        let action = action.into();
        move |source| Self::Postgres {
            action,
            source: Box::new(source),
        }
    }

    pub(crate) fn redis(action: impl Into<String>) -> impl FnOnce(redis::RedisError) -> Self {
        let action = action.into();
        move |source| Self::Redis {
            action,
            source: Box::new(source),
        }
    }
}
