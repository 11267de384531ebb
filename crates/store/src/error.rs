//! One error for every engine, with a kind that callers match.

use std::fmt;

use herald_failure::{Classify, FailureClass};

/// The outcome of a call to a store.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, for callers to act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The store can't be reached or is shutting down; the same call may succeed later.
    Unavailable,
    /// There is no room left; the same call may succeed when there is.
    Full,
    /// The asked follow version is older than the kept history.
    HistoryTrimmed,
    /// A limit of the store would be passed, as [`DEVICES_PER_USER_MAX`](crate::DEVICES_PER_USER_MAX).
    LimitExceeded,
    /// Somebody else has changed it meanwhile; read it again and decide anew.
    Conflict,
    /// The call makes no sense: a mistake of the caller.
    Invalid,
    /// What was read makes no sense; an operator must look.
    Corrupt,
    /// Another process has the store open.
    Locked,
}

/// Why a store did not do what it was asked.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error without an inner one.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// An error that another one caused.
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

    /// What to act on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
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
            ErrorKind::Unavailable | ErrorKind::Full | ErrorKind::Conflict | ErrorKind::Locked => {
                FailureClass::Transient
            }
            ErrorKind::HistoryTrimmed
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
            (ErrorKind::Locked, FailureClass::Transient),
            (ErrorKind::HistoryTrimmed, FailureClass::Permanent),
            (ErrorKind::LimitExceeded, FailureClass::Permanent),
            (ErrorKind::Invalid, FailureClass::Permanent),
            (ErrorKind::Corrupt, FailureClass::Permanent),
        ] {
            assert_eq!(Error::new(kind, "failed").class(), class, "{kind:?}");
        }
    }
}
