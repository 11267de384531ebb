//! Why the service can't start or go on.

use std::{path::PathBuf, time::Duration};

use herald_failure::{Classified, Classify, FailureClass};
use herald_posts::ReadError;
use herald_store::ErrorKind;

/// How long to leave a chunk alone that another worker has in hand. One that was stopped for longer than the broker waits
/// finds that out when it records; to fetch the chunk again at once would send to the same devices beside the other one.
const OTHERS_WAIT: Duration = Duration::from_secs(30);

/// Why the service can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is out of its bounds.
    #[error("{0}")]
    Config(String),
    /// A file can't be read or made.
    #[error("the file {path} can't be used")]
    File {
        /// Which.
        path: PathBuf,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// The VAPID private key is no P-256 key of 32 bytes in base64url.
    #[error("the VAPID private key must be 32 bytes in base64url")]
    VapidKey,
    /// There is no HTTP client, for instance because of a bad certificate authority.
    #[error("an HTTP client can't be made")]
    Client(#[source] reqwest::Error),
    /// A consumer can't be worked on.
    #[error("a push consumer can't be worked on")]
    Consume(#[from] herald_mesh::Error),
}

/// Why an attempt at a chunk was broken off; it is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttemptError {
    #[error("the store failed: {0}")]
    Store(#[from] herald_store::Error),
    #[error("the mesh failed: {0}")]
    Mesh(#[from] herald_mesh::Error),
    #[error("{0}")]
    Fault(String),
}

impl From<ReadError> for AttemptError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Store(error) => Self::Store(error),
            ReadError::Mesh(error) => Self::Mesh(error),
        }
    }
}

impl From<Classified<Self>> for AttemptError {
    fn from(failure: Classified<Self>) -> Self {
        match failure {
            Classified::Transient(error) => error,
            Classified::Permanent(reason) => Self::Fault(reason),
        }
    }
}

impl Classify for AttemptError {
    fn class(&self) -> FailureClass {
        match self {
            Self::Store(error) => error.class(),
            Self::Mesh(error) => error.class(),
            Self::Fault(_) => FailureClass::Permanent,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Store(error) if error.kind() == ErrorKind::Conflict => Some(OTHERS_WAIT),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(kind: ErrorKind) -> AttemptError {
        herald_store::Error::new(kind, "failed").into()
    }

    #[test]
    fn each_kind_has_a_class() {
        assert_eq!(store(ErrorKind::Unavailable).class(), FailureClass::Transient);
        assert_eq!(store(ErrorKind::Corrupt).class(), FailureClass::Permanent);
        assert_eq!(
            AttemptError::Fault("panic".into()).class(),
            FailureClass::Permanent
        );
    }

    #[test]
    fn a_conflict_waits_for_the_other_worker() {
        let conflict = store(ErrorKind::Conflict);
        assert_eq!(
            (conflict.class(), conflict.retry_after()),
            (FailureClass::Transient, Some(OTHERS_WAIT))
        );
        assert_eq!(store(ErrorKind::Full).retry_after(), None);
    }
}
