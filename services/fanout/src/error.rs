//! Errors of the service, and failures of single messages.

use std::{error::Error as _, time::Duration};

use herald_failure::{Classify, FailureClass};
use tonic::Code;

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
    #[error("the service stopped while the graph service was unavailable")]
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
    /// Whether the graph service can't be reached, or can't read its store now. The message then waits for it.
    pub(crate) fn is_graph_unavailable(&self) -> bool {
        let Self::Graph(status) = self else { return false };
        // Only a status that this client made of a broken connection has a source.
        matches!(
            status.code(),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
        ) || status.source().is_some()
    }
}

impl Classify for ExpandError {
    fn class(&self) -> FailureClass {
        match self {
            Self::Graph(status) => classify_status(status),
            Self::Stopped | Self::Truncated { .. } => FailureClass::Transient,
            Self::Page(_) => FailureClass::Permanent,
            Self::Ledger(error) => error.class(),
            Self::Publish(error) => error.class(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        // Another process can take the message at once.
        matches!(self, Self::Stopped).then_some(Duration::ZERO)
    }
}

fn classify_status(status: &tonic::Status) -> FailureClass {
    match status.code() {
        // FAILED_PRECONDITION: the follow history of the author no longer reaches back to the post.
        Code::FailedPrecondition | Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => {
            FailureClass::Permanent
        }
        _ => FailureClass::Transient,
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
        for code in (0..=16).map(Code::from) {
            let permanent = [
                Code::FailedPrecondition,
                Code::InvalidArgument,
                Code::OutOfRange,
                Code::Unimplemented,
            ];
            let error = ExpandError::from(Status::new(code, "refused"));
            assert_eq!(error.is_transient(), !permanent.contains(&code), "{code:?}");
        }
        assert!(!ExpandError::from(MalformedRecipients::Order).is_transient());
        let ledger = |kind| ExpandError::from(herald_store::Error::new(kind, "failed"));
        assert!(ledger(ErrorKind::Full).is_transient());
        assert!(!ledger(ErrorKind::Corrupt).is_transient());
    }
}
