//! Why the service can't start or go on.

use std::{path::PathBuf, time::Duration};

use herald_mesh::Settle;
use herald_store::ErrorKind;

/// How long to leave a chunk alone that another worker has in hand. One that was stopped for longer than the broker waits
/// finds that out when it records; to fetch the chunk again at once would send to the same devices beside the other one.
const OTHERS_WAIT: Duration = Duration::from_secs(30);

/// Why the service can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is out of its bounds.
    #[error("{0}")]
    Config(String),
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
    #[error("{0}")]
    Fault(String),
}

impl AttemptError {
    /// Whether waiting may mend it.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Store(error) => error.kind().is_passing(),
            Self::Mesh(_) => true,
            Self::Fault(_) => false,
        }
    }

    /// How to settle a message whose attempt ended so.
    pub(crate) fn settle(self) -> Settle {
        match self {
            Self::Store(error) if error.kind() == ErrorKind::Conflict => {
                Settle::retry_after(OTHERS_WAIT, "another worker has recorded meanwhile")
            }
            error if error.is_passing() => Settle::retry(error),
            error => Settle::fault(error),
        }
    }
}
