//! Why the service ended, and why a message was not done.

/// Why the service ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The topology has no such consumer.
    #[error("the topology has no consumer {0}")]
    NoConsumer(&'static str),
    /// A consumer can't be worked on.
    #[error("a timeline consumer can't be worked on")]
    Consume(#[source] herald_mesh::Error),
    /// A worker died.
    #[error("a timeline worker died")]
    Worker(#[source] tokio::task::JoinError),
}

/// Why a message was not done; it is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeliverError {
    #[error("the store failed: {0}")]
    Store(#[from] herald_store::Error),
    #[error("the mesh failed: {0}")]
    Mesh(#[from] herald_mesh::Error),
}
