//! Why the service ended.

/// Why the service ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is out of bounds.
    #[error("{0}")]
    Config(String),
    /// The gRPC server failed.
    #[error("the graph service's gRPC server failed")]
    Serve(#[source] herald_runtime::grpc::Error),
}
