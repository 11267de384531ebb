//! Why the service can't start or go on.

use std::path::PathBuf;

/// Why the service can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is out of its bounds.
    #[error("push.{field} {reason}")]
    Config {
        /// Which.
        field: &'static str,
        /// What is expected.
        reason: &'static str,
    },
    /// A file can't be read or made.
    #[error("the file {path} can't be used")]
    File {
        /// Which.
        path: PathBuf,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// The VAPID private key is no P-256 key of 32 bytes in base64url.
    #[error("the VAPID private key must be 32 bytes in base64url")]
    VapidKey,
    /// There is no HTTP client, for instance because of a bad certificate authority.
    #[error("an HTTP client can't be made")]
    Client(#[source] reqwest::Error),
    /// A consumer can't be worked on.
    #[error("a push consumer can't be worked on")]
    Consume(#[from] herald_mesh::Error),
}

/// Why an attempt at a chunk was broken off; it is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttemptError {
    #[error("the store failed: {0}")]
    Store(#[from] herald_store::Error),
    #[error("the mesh failed: {0}")]
    Mesh(#[from] herald_mesh::Error),
}
