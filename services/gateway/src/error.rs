//! Errors that end the service, and the gRPC status of a failed read.

use herald_posts::ReadError;
use herald_rpc::status;
use tonic::Status;

/// Why the service ended without a shutdown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is invalid.
    #[error("{0}")]
    Config(String),
    /// The streams are damaged, or don't belong to the store.
    #[error(transparent)]
    Streams(#[from] herald_recovery::Problems),
    /// The streams or the store can't be read at the start.
    #[error("the streams can't be compared with the store")]
    Check(#[from] herald_recovery::Error),
    /// Authentication can't be set up.
    #[error(transparent)]
    Authentication(#[from] herald_auth::Error),
    /// The gRPC server failed.
    #[error("the gateway's gRPC server failed")]
    Serve(#[source] tonic::transport::Error),
    /// The descriptors for gRPC reflection are malformed.
    #[error("the descriptors for gRPC reflection are malformed")]
    Reflection(#[source] herald_runtime::grpc::Error),
}

/// The gRPC status of a failed read of a post.
pub(crate) fn read_error_to_status(error: &ReadError) -> Status {
    match error {
        ReadError::Store(error) => status::from_store(error),
        ReadError::Mesh(error) => status::from_mesh(error),
    }
}
