//! The error type of every engine. Callers match its kind.

use std::fmt;

use herald_failure::{Classify, FailureClass};

/// The result of a call to a store.
pub type Result<T> = std::result::Result<T, Error>;

/// Kind of an error. [`Classify`] says which kinds are transient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The store can't be reached, can't write or is shutting down. Retry the call later.
    Unavailable,
    /// The store has too little free space. Retry the call after space was freed.
    Full,
    /// The requested follow version is older than the retained history.
    HistoryTrimmed,
    /// The requested follow version is newer than the newest one of this store: it comes from another store.
    UnknownVersion,
    /// The call would exceed a limit, such as [`DEVICES_PER_USER_MAX`](crate::DEVICES_PER_USER_MAX).
    LimitExceeded,
    /// The row changed since the caller read it. Read it again, then retry.
    Conflict,
    /// Another worker has claimed the row, and its lease has not ended. Retry later.
    Claimed,
    /// The lease that guards this write belongs to a newer holder. Stop the work that it guards.
    Fenced,
    /// The arguments are invalid: a bug of the caller.
    Invalid,
    /// Stored data can't be decoded, contradicts itself or has another format. An operator must act; a retry does not
    /// help.
    Corrupt,
    /// The store is open in another process.
    Locked,
    /// A write or an fsync of the store failed, and the state on its disk is unknown: the process that has it open ends,
    /// and the store must be opened again. Retry the call then.
    Failed,
}

impl ErrorKind {
    /// Whether the store can't be used for now: work that needs it waits, and spends no attempt.
    pub fn is_away(self) -> bool {
        matches!(self, Self::Unavailable | Self::Full | Self::Failed)
    }
}

/// Error of a store.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error without a source.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// An error with the error that caused it as its source.
    pub fn with_source(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            message: message.into(),
            source: Some(source.into()),
        }
    }

    /// The kind, for callers to match.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the store can't be used for now: work that needs it waits, and spends no attempt.
    pub fn is_away(&self) -> bool {
        self.kind.is_away()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

impl Classify for Error {
    fn class(&self) -> FailureClass {
        match self.kind {
            ErrorKind::Unavailable
            | ErrorKind::Full
            | ErrorKind::Conflict
            | ErrorKind::Claimed
            | ErrorKind::Fenced
            | ErrorKind::Locked
            | ErrorKind::Failed => FailureClass::Transient,
            ErrorKind::HistoryTrimmed
            | ErrorKind::UnknownVersion
            | ErrorKind::LimitExceeded
            | ErrorKind::Invalid
            | ErrorKind::Corrupt => FailureClass::Permanent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_class() {
        for (kind, class) in [
            (ErrorKind::Unavailable, FailureClass::Transient),
            (ErrorKind::Full, FailureClass::Transient),
            (ErrorKind::Conflict, FailureClass::Transient),
            (ErrorKind::Claimed, FailureClass::Transient),
            (ErrorKind::Fenced, FailureClass::Transient),
            (ErrorKind::Locked, FailureClass::Transient),
            (ErrorKind::Failed, FailureClass::Transient),
            (ErrorKind::HistoryTrimmed, FailureClass::Permanent),
            (ErrorKind::UnknownVersion, FailureClass::Permanent),
            (ErrorKind::LimitExceeded, FailureClass::Permanent),
            (ErrorKind::Invalid, FailureClass::Permanent),
            (ErrorKind::Corrupt, FailureClass::Permanent),
        ] {
            assert_eq!(Error::new(kind, "failed").class(), class, "{kind:?}");
        }
    }
}
