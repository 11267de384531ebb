//! Errors that end the service.

/// Why the service ended without a shutdown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is invalid.
    #[error("{0}")]
    Config(String),
    /// The gRPC server failed.
    #[error("the graph service's gRPC server failed")]
    Serve(#[source] herald_runtime::grpc::Error),
}
