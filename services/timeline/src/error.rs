//! Why the service ended, and why a message was not done.

use std::time::Duration;

use herald_mesh::Settle;
use herald_store::ErrorKind;

/// Why the service ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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

impl DeliverError {
    /// Whether waiting may mend it.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Store(error) => error.kind().is_passing(),
            Self::Mesh(_) | Self::Event(_) => true,
        }
    }

    /// How to settle a message that was not done because of it.
    pub(crate) fn settle(self) -> Settle {
        match self {
            // Another worker has recorded meanwhile: on from there.
            Self::Store(error) if error.kind() == ErrorKind::Conflict => {
                Settle::retry_after(Duration::ZERO, error)
            }
            error if error.is_passing() => Settle::retry(error),
            error => Settle::fault(error),
        }
    }
}
