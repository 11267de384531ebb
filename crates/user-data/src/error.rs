//! Errors of exports and erasures.

/// Why an export or an erasure ended early. An erasure can be run again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A stream can't be read or changed.
    #[error("a broker operation failed: {0}")]
    Mesh(#[from] herald_mesh::Error),
    /// The store failed.
    #[error("the store failed: {0}")]
    Store(#[from] herald_store::Error),
    /// Posts of the user are left: one was archived while the posts were erased.
    #[error("posts of the user are left: one was archived during the erasure")]
    Unfinished,
    /// There is no erasure with this id.
    #[error("there is no such erasure")]
    NoErasure,
    /// The receiver of an export was dropped.
    #[error("the receiver of the export was dropped")]
    Abandoned,
}

/// The result of an export or an erasure.
pub type Result<T> = std::result::Result<T, Error>;
