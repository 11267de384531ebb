//! Why an audit could not be finished.

use herald_model::PostId;

/// An audit that ended early. It has proved nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The post to check never was.
    #[error("post {} never was", .0.0)]
    UnknownPost(PostId),
    /// Nobody reads the findings any more.
    #[error("nobody reads the findings any more")]
    Abandoned,
    /// The streams can't be read.
    #[error("the streams can't be read: {0}")]
    Mesh(#[from] herald_mesh::Error),
    /// A store can't be read.
    #[error("a store can't be read: {0}")]
    Store(#[from] herald_store::Error),
    /// A part of it was cut off.
    #[error("a part of the audit was cut off: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// What an audit comes to.
pub type Result<T> = std::result::Result<T, Error>;
