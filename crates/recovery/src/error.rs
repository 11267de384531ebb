//! Errors of checks and recoveries.

/// Why streams and store can't be compared or recovered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A stream can't be read or changed.
    #[error("the streams can't be used")]
    Mesh(#[from] herald_mesh::Error),
    /// The NATS servers didn't do it for as long as a recovery waits.
    #[error(
        "the NATS servers didn't do it within a minute: wait until they have a leader for every stream, and run it \
         again; what was done stays done"
    )]
    Unavailable(#[source] herald_mesh::Error),
    /// The store can't be read or written.
    #[error("the store can't be used")]
    Store(#[from] herald_store::Error),
    /// Somebody consumes messages, so the mesh is running.
    #[error(
        "consumer {consumer} of stream {stream} has {pulls} waiting pulls: stop all processes of Herald first"
    )]
    InUse {
        /// The stream.
        stream: String,
        /// The consumer.
        consumer: String,
        /// Pulls that wait for messages.
        pulls: u64,
    },
    /// A message was published to a stream that is about to begin anew.
    #[error("stream {stream} got a message meanwhile: stop all processes of Herald first, and run it again")]
    Changed {
        /// The stream.
        stream: String,
    },
}

/// The result of a check or recovery.
pub type Result<T, E = Error> = std::result::Result<T, E>;
