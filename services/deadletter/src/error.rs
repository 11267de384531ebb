//! Errors of the service and of one step of its work.

/// The reason why the service ended without a shutdown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value of the configuration is out of bounds.
    #[error("{0}")]
    Config(String),
    /// The Protobuf descriptors are malformed.
    #[error("the Protobuf descriptors are malformed")]
    Descriptors(#[source] prost_reflect::DescriptorError),
    /// A consumer failed.
    #[error("a consumer of the deadletter service failed")]
    Consume(#[from] herald_mesh::Error),
    /// The gRPC server failed.
    #[error("the deadletter service's gRPC server failed")]
    Serve(#[source] herald_runtime::grpc::Error),
    /// A task panicked.
    #[error("a task of the deadletter service panicked")]
    Worker(#[source] tokio::task::JoinError),
}

/// The reason why one step of the work failed. The step is retried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    /// The store failed.
    #[error("the store failed: {0}")]
    Store(#[from] herald_store::Error),
    /// The mesh failed.
    #[error("a broker operation failed: {0}")]
    Mesh(#[from] herald_mesh::Error),
}
