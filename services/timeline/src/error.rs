//! Errors of the service, and failures of single messages.

use std::{sync::Arc, time::Duration};

use herald_failure::{Classified, Classify, FailureClass};
use herald_mesh::Disposition;
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
    #[error("timelines were lost after the delivery")]
    Lost,
    #[error("the service stopped while the message waited")]
    Stopped,
}

impl DeliverError {
    /// Whether the store can't be used now or has just lost timelines: the message waits in its handler and spends no
    /// attempt.
    pub(crate) fn waits_for_store(&self) -> bool {
        match self {
            Self::Store(error) => error.is_away(),
            Self::Lost => true,
            _ => false,
        }
    }
}

/// Why the handling of a message ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// An error.
    Error(DeliverError),
    /// The message is settled with this disposition.
    Settled(Disposition),
}

impl From<DeliverError> for Failure {
    fn from(error: DeliverError) -> Self {
        Self::Error(error)
    }
}

impl From<herald_store::Error> for Failure {
    fn from(error: herald_store::Error) -> Self {
        Self::Error(error.into())
    }
}

impl From<herald_mesh::Error> for Failure {
    fn from(error: herald_mesh::Error) -> Self {
        Self::Error(error.into())
    }
}

impl From<Classified<DeliverError>> for Failure {
    fn from(failure: Classified<DeliverError>) -> Self {
        match failure {
            Classified::Transient(error) => Self::Error(error),
            permanent @ Classified::Permanent(_) => Self::Settled(permanent.into()),
        }
    }
}

impl From<Disposition> for Failure {
    fn from(disposition: Disposition) -> Self {
        Self::Settled(disposition)
    }
}

impl Classify for DeliverError {
    fn class(&self) -> FailureClass {
        match self {
            Self::Store(error) => error.class(),
            Self::Mesh(error) => error.class(),
            Self::Event(error) => error.class(),
            Self::Lost | Self::PublisherStopped | Self::Stopped => FailureClass::Transient,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            // Another process can take the message at once.
            Self::Stopped => Some(Duration::ZERO),
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
    fn a_message_waits_for_the_store() {
        assert!(store(ErrorKind::Unavailable).waits_for_store());
        assert!(store(ErrorKind::Full).waits_for_store());
        assert!(!store(ErrorKind::Conflict).waits_for_store());
        assert!(DeliverError::Lost.waits_for_store());
        assert!(!DeliverError::Stopped.waits_for_store());
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
