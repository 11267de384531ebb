//! An error that many wait for.

use crate::{Error, ErrorKind};

/// Why something failed, to be told to many. [`Error`] itself can't be cloned.
#[derive(Debug, Clone)]
pub(crate) struct SharedError {
    kind: ErrorKind,
    message: String,
}

impl SharedError {
    /// What failed, because of which error.
    pub(crate) fn new(what: &str, cause: &Error) -> Self {
        Self {
            kind: cause.kind(),
            message: format!("{what}: {}", with_sources(cause)),
        }
    }

    /// What failed because the thread that does it is gone.
    pub(crate) fn ended(what: &str) -> Self {
        Self {
            kind: ErrorKind::Unavailable,
            message: what.into(),
        }
    }

    /// The error to return.
    pub(crate) fn error(&self) -> Error {
        Error::new(self.kind, self.message.clone())
    }
}

/// An error and what caused it, in one line.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
