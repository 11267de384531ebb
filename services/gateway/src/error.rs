//! Why the service ended, and errors as callers see them.

use herald_posts::ReadError;
use herald_rpc::status;
use tonic::Status;

/// Why the service ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is wrong.
    #[error("{0}")]
    Config(String),
    /// The POSTS stream is not the one that the store was filled from: post ids would be given twice.
    #[error(
        "the POSTS stream ends at {stream_last} but the store holds post {store_last}: this data directory belongs to \
         another stream, and new posts would take the ids of old ones. Start with the nats-server data that belongs to \
         it, or with an empty data directory"
    )]
    ForeignStore {
        /// The last sequence number of POSTS.
        stream_last: u64,
        /// The greatest archived post.
        store_last: u64,
    },
    /// The store failed at start-up.
    #[error("the store can't be read")]
    Store(#[from] herald_store::Error),
    /// The broker failed at start-up, or a consumer ended.
    #[error("the mesh failed")]
    Mesh(#[from] herald_mesh::Error),
    /// The gRPC server failed.
    #[error("the gateway's gRPC server failed")]
    Serve(#[source] tonic::transport::Error),
    /// The descriptors for reflection are broken.
    #[error("the descriptors for reflection can't be read")]
    Reflection(#[source] herald_runtime::grpc::Error),
}

/// A post that can't be read, as callers see it.
pub(crate) fn unreadable(error: &ReadError) -> Status {
    match error {
        ReadError::Store(error) => status::from_store(error),
        ReadError::Mesh(error) => status::from_mesh(error),
    }
}
