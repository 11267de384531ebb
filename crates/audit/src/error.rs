//! Errors of audits.

use herald_model::PostId;

/// Why an audit ended early. An audit that ended early proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The post to check does not exist.
    #[error("post {} does not exist", .0.0)]
    UnknownPost(PostId),
    /// The receiver of the findings was dropped.
    #[error("the receiver of the findings was dropped")]
    Abandoned,
    /// A stream can't be read.
    #[error("a stream can't be read: {0}")]
    Mesh(#[from] herald_mesh::Error),
    /// A store can't be read.
    #[error("a store can't be read: {0}")]
    Store(#[from] herald_store::Error),
    /// A task of the audit was cancelled or panicked.
    #[error("a task of the audit ended early: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// The result of an audit.
pub type Result<T> = std::result::Result<T, Error>;
