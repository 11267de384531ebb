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
    /// The store was filled from another POSTS stream, so new posts would reuse the ids of archived posts.
    #[error(
        "the POSTS stream ends at {stream_last} but the store holds post {store_last}: the data directory belongs to \
         another stream, and new posts would reuse the ids of archived posts; start with the nats-server data that \
         belongs to this data directory, or with an empty data directory"
    )]
    ForeignStore {
        /// Last sequence number of POSTS.
        stream_last: u64,
        /// Greatest id of an archived post.
        store_last: u64,
    },
    /// The last archived post can't be read at start-up.
    #[error("the gateway can't read the store at start-up")]
    Store(#[from] herald_store::Error),
    /// The broker failed at start-up, or an archive consumer failed.
    #[error("a broker operation of the gateway failed")]
    Mesh(#[from] herald_mesh::Error),
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
