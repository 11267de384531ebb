//! Why the service ended, and why a message was not done.

use std::time::Duration;

use herald_failure::{Classify, FailureClass};
use herald_store::ErrorKind;

/// Why the service ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is out of bounds.
    #[error("{0}")]
    Config(String),
    /// A consumer can't be worked on.
    #[error("a timeline consumer can't be worked on")]
    Consume(#[from] herald_mesh::Error),
    /// What tells analytics and watchers died.
    #[error("the timeline service can't tell what it did")]
    Tell(#[from] tokio::task::JoinError),
}

/// Why a message was not done; it is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeliverError {
    #[error("the store failed: {0}")]
    Store(#[from] herald_store::Error),
    #[error("the mesh failed: {0}")]
    Mesh(#[from] herald_mesh::Error),
    #[error("the event was not published: {0}")]
    Event(String),
}

impl Classify for DeliverError {
    fn class(&self) -> FailureClass {
        match self {
            Self::Store(error) => error.class(),
            Self::Mesh(error) => error.class(),
            Self::Event(_) => FailureClass::Transient,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            // Another worker has recorded an outcome meanwhile; the retry starts from it.
            Self::Store(error) if error.kind() == ErrorKind::Conflict => Some(Duration::ZERO),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(kind: ErrorKind) -> DeliverError {
        herald_store::Error::new(kind, "failed").into()
    }

    #[test]
    fn each_kind_has_a_class() {
        assert_eq!(store(ErrorKind::Unavailable).class(), FailureClass::Transient);
        assert_eq!(store(ErrorKind::Corrupt).class(), FailureClass::Permanent);
        assert_eq!(
            DeliverError::Event("full".into()).class(),
            FailureClass::Transient
        );
    }

    #[test]
    fn a_conflict_is_retried_at_once() {
        let conflict = store(ErrorKind::Conflict);
        assert_eq!(
            (conflict.class(), conflict.retry_after()),
            (FailureClass::Transient, Some(Duration::ZERO))
        );
        assert_eq!(store(ErrorKind::Full).retry_after(), None);
    }
}
