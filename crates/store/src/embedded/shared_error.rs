//! An error that is returned to several callers.

use crate::{Error, ErrorKind};

/// A cloneable copy of an [`Error`]: its kind, and its message with all sources.
#[derive(Debug, Clone)]
pub(crate) struct SharedError {
    kind: ErrorKind,
    message: String,
}

impl SharedError {
    /// A copy of an error.
    pub(crate) fn of(error: &Error) -> Self {
        Self {
            kind: error.kind(),
            message: with_sources(error),
        }
    }

    /// `what` failed because of `cause`.
    pub(crate) fn new(what: &str, cause: &Error) -> Self {
        Self {
            kind: cause.kind(),
            message: format!("{what}: {}", with_sources(cause)),
        }
    }

    /// `what` is unavailable because its thread has ended.
    pub(crate) fn ended(what: &str) -> Self {
        Self {
            kind: ErrorKind::Unavailable,
            message: what.into(),
        }
    }

    /// The error for one caller.
    pub(crate) fn error(&self) -> Error {
        Error::new(self.kind, self.message.clone())
    }
}

/// The messages of an error and its sources, joined by colons.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
