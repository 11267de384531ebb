//! Errors that end the service.

/// Why the service ended without a shutdown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is invalid.
    #[error("{0}")]
    Config(String),
    /// The store and the POSTS stream don't belong together, or can't be read at the start.
    #[error(transparent)]
    Stream(#[from] herald_posts::StreamError),
    /// A consumer failed.
    #[error("a consumer of the archive failed")]
    Mesh(#[from] herald_mesh::Error),
}
