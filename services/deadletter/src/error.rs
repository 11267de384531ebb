//! Why the service ended, and why a step was not done.

/// Why the service ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is out of bounds.
    #[error("{0}")]
    Config(String),
    /// The descriptors can't be read.
    #[error("the descriptors of the messages can't be read")]
    Descriptors(#[source] prost_reflect::DescriptorError),
    /// A consumer can't be worked on.
    #[error("a dead-letter consumer can't be worked on")]
    Consume(#[from] herald_mesh::Error),
    /// The gRPC server failed.
    #[error("the deadletter service's gRPC server failed")]
    Serve(#[source] herald_runtime::grpc::Error),
    /// A part of it died.
    #[error("a part of the deadletter service died")]
    Worker(#[source] tokio::task::JoinError),
}

/// Why a step was not done; it is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    /// The store failed.
    #[error("the store failed: {0}")]
    Store(#[from] herald_store::Error),
    /// The mesh failed.
    #[error("the mesh failed: {0}")]
    Mesh(#[from] herald_mesh::Error),
}
