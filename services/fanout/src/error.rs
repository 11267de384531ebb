//! Why the service ended, and why a message was not done.

use herald_failure::{Classify, FailureClass};
use tonic::Code;

/// Why the service ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is out of bounds.
    #[error("{0}")]
    Config(String),
    /// A consumer can't be worked on.
    #[error("a fan-out consumer can't be worked on")]
    Consume(#[from] herald_mesh::Error),
}

/// Why a message was not done; it is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExpandError {
    #[error("followers can't be read from the graph service: {0}")]
    Graph(#[from] tonic::Status),
    #[error("the graph service sent a malformed page: {0}")]
    Page(#[from] herald_model::MalformedRecipients),
    #[error("the plan can't be written to the ledger: {0}")]
    Ledger(#[from] herald_store::Error),
    #[error("a message was not taken by the mesh: {0}")]
    Publish(#[from] herald_mesh::Error),
}

impl Classify for ExpandError {
    fn class(&self) -> FailureClass {
        match self {
            Self::Graph(status) => class_of(status),
            Self::Page(_) => FailureClass::Permanent,
            Self::Ledger(error) => error.class(),
            Self::Publish(error) => error.class(),
        }
    }
}

fn class_of(status: &tonic::Status) -> FailureClass {
    match status.code() {
        // FAILED_PRECONDITION: the author's follow history does not reach back to the post any more.
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
