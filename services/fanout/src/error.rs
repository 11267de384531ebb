//! Errors of the service, and failures of single messages.

use std::time::Duration;

use herald_failure::{Classify, FailureClass};
use herald_rpc::status;

/// An error that stops the service.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is out of bounds.
    #[error("{0}")]
    Config(String),
    /// A consumer failed.
    #[error("a fan-out consumer failed")]
    Consume(#[from] herald_mesh::Error),
}

/// Why a message could not be expanded; the message is retried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExpandError {
    #[error("followers can't be read from the graph service: {0}")]
    Graph(#[from] tonic::Status),
    #[error("the key of the author can't be looked up: {0}")]
    Author(#[source] herald_store::Error),
    #[error("the service stopped while the message waited")]
    Stopped,
    #[error("the graph service's stream of followers ended after {followers}, before its last page")]
    Truncated { followers: u64 },
    #[error("the graph service sent a malformed page: {0}")]
    Page(#[from] herald_model::MalformedRecipients),
    #[error("the plan can't be written to the ledger: {0}")]
    Ledger(#[from] herald_store::Error),
    #[error("a message can't be published: {0}")]
    Publish(#[from] herald_mesh::Error),
}

impl ExpandError {
    /// Whether the message waits until another part of the mesh is back or has room: graph, the store, a stream, or the
    /// disk.
    pub(crate) fn is_wait(&self) -> bool {
        match self {
            Self::Graph(_) => self.is_transient(),
            Self::Author(error) | Self::Ledger(error) => error.is_away(),
            Self::Publish(error) => error.kind() == herald_mesh::ErrorKind::Full,
            Self::Stopped | Self::Truncated { .. } | Self::Page(_) => false,
        }
    }
}

impl Classify for ExpandError {
    fn class(&self) -> FailureClass {
        match self {
            Self::Graph(status) => status::class(status),
            Self::Stopped | Self::Truncated { .. } => FailureClass::Transient,
            Self::Page(_) => FailureClass::Permanent,
            Self::Author(error) | Self::Ledger(error) => error.class(),
            Self::Publish(error) => error.class(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        // Another process can take the message at once.
        matches!(self, Self::Stopped).then_some(Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use herald_model::MalformedRecipients;
    use herald_store::ErrorKind;
    use tonic::Status;

    use super::*;

    #[test]
    fn each_kind_has_a_class() {
        let graph = |kind| {
            let error = herald_store::Error::new(kind, "failed");
            ExpandError::from(status::from_store(&error))
        };
        assert!(!graph(ErrorKind::Corrupt).is_transient());
        assert!(!graph(ErrorKind::HistoryTrimmed).is_transient());
        assert!(graph(ErrorKind::Unavailable).is_transient());
        assert!(ExpandError::from(Status::internal("transport error")).is_transient());
        assert!(!ExpandError::from(MalformedRecipients::Order).is_transient());
        let ledger = |kind| ExpandError::from(herald_store::Error::new(kind, "failed"));
        assert!(ledger(ErrorKind::Full).is_transient());
        assert!(ledger(ErrorKind::Full).is_wait());
        assert!(ledger(ErrorKind::Unavailable).is_wait());
        assert!(!ledger(ErrorKind::Corrupt).is_wait());
        assert!(!ledger(ErrorKind::Corrupt).is_transient());
    }
}
