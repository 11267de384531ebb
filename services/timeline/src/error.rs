//! Why the service ended, and why a message was not done.

/// Why the service ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A consumer can't be worked on.
    #[error("a timeline consumer can't be worked on")]
    Consume(#[from] herald_mesh::Error),
}

/// Why a message was not done; it is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeliverError {
    #[error("the store failed: {0}")]
    Store(#[from] herald_store::Error),
    #[error("the mesh failed: {0}")]
    Mesh(#[from] herald_mesh::Error),
}
