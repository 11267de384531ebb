//! Why the service ended, and why a message was not done.

use tonic::Code;

/// Why the service ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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

impl ExpandError {
    /// Whether waiting may mend it.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            // FAILED_PRECONDITION: the author's follow history does not reach back to the post any more.
            Self::Graph(status) => !matches!(
                status.code(),
                Code::FailedPrecondition | Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented
            ),
            Self::Page(_) => false,
            Self::Ledger(error) => error.kind().is_passing(),
            Self::Publish(_) => true,
        }
    }
}
