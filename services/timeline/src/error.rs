//! Errors of the service, and failures of single messages.

use std::{sync::Arc, time::Duration};

use herald_failure::{Classify, FailureClass};
use herald_store::ErrorKind;

/// An error that stops the service.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is out of bounds.
    #[error("{0}")]
    Config(String),
    /// A consumer failed.
    #[error("a timeline consumer failed")]
    Consume(#[from] herald_mesh::Error),
    /// A publisher to watchers or analytics panicked.
    #[error("a publisher of the timeline service panicked")]
    Publisher(#[from] tokio::task::JoinError),
}

/// Why a message could not be delivered; the message is retried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeliverError {
    #[error("the store failed: {0}")]
    Store(#[from] herald_store::Error),
    #[error("a broker operation failed: {0}")]
    Mesh(#[from] herald_mesh::Error),
    #[error("the event can't be published: {0}")]
    Event(#[source] Arc<herald_mesh::Error>),
    #[error("the event can't be published: the publisher of events has stopped")]
    PublisherStopped,
}

impl Classify for DeliverError {
    fn class(&self) -> FailureClass {
        match self {
            Self::Store(error) => error.class(),
            Self::Mesh(error) => error.class(),
            Self::Event(error) => error.class(),
            Self::PublisherStopped => FailureClass::Transient,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            // Another worker has recorded an outcome meanwhile. The retry starts from this outcome.
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
        assert_eq!(DeliverError::PublisherStopped.class(), FailureClass::Transient);
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
