//! Why the service ended, and why a message was not done.

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
