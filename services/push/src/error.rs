//! Errors of the service, and failures of single attempts.

use std::{path::PathBuf, time::Duration};

use herald_failure::{Classified, Classify, FailureClass};
use herald_posts::ReadError;
use herald_store::ErrorKind;

/// Delay before the retry of a chunk whose outcome another worker has changed meanwhile.
const CONFLICT_RETRY_DELAY: Duration = Duration::from_secs(1);

/// An error that stops the service.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is out of bounds.
    #[error("{0}")]
    Config(String),
    /// A file can't be read or created.
    #[error("file {path} can't be read or created")]
    File {
        /// The file.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: std::io::Error,
    },
    /// The VAPID private key is not a P-256 key of 32 bytes in base64url.
    #[error("the VAPID private key is not a P-256 key of 32 bytes in base64url")]
    VapidKey,
    /// The file of the VAPID key does not exist, but Web Push devices are registered.
    #[error(
        "the VAPID key file {0} does not exist, but Web Push devices are registered, and their push services accept no \
         other key: restore the file from a backup; if it is lost for good, set push.vapid_key_replace to true for one \
         start: this creates a new key and unregisters the Web Push devices, whose browsers have to subscribe again"
    )]
    VapidKeyLost(PathBuf),
    /// The VAPID key is not the one that the Web Push devices were registered with.
    #[error(
        "the VAPID key is not the one that the registered Web Push devices subscribed with, and their push services \
         accept no other key: restore the key (push.vapid_private_key, push.vapid_key_file, or vapid.key in the data \
         directory); if it is lost for good, set push.vapid_key_replace to true for one start: this unregisters the \
         Web Push devices, whose browsers have to subscribe again"
    )]
    VapidKeyChanged,
    /// Processes that share a store have no VAPID key in their configuration.
    #[error(
        "no VAPID key is configured: all push processes that share a store must have the same key; set \
         push.vapid_private_key (HERALD_PUSH__VAPID_PRIVATE_KEY, or HERALD_PUSH__VAPID_PRIVATE_KEY_FILE for a file) to 32 \
         random bytes in base64url, such as from `openssl rand 32 | basenc --base64url | tr -d =`"
    )]
    VapidKeyMissing,
    /// Another process that shares the store has another VAPID key.
    #[error(
        "the VAPID key is not the one that another process has recorded in the store: give all push processes and \
         gateways the same push.vapid_private_key; to replace the key for good, start one push process with \
         push.vapid_key_replace set to true: this unregisters the Web Push devices, whose browsers have to subscribe again"
    )]
    VapidKeyDiffers,
    /// No push process has recorded its VAPID key.
    #[error(
        "no push process has recorded its VAPID key in the store, so browsers can't subscribe: start a push process, or \
         give the gateway the same push.vapid_private_key"
    )]
    VapidKeyUnknown,
    /// The store failed at the start.
    #[error("the store can't be read or written")]
    Store(#[from] herald_store::Error),
    /// The HTTP client can't be created, for instance because of a malformed certificate authority.
    #[error("the HTTP client can't be created")]
    Client(#[source] reqwest::Error),
    /// A consumer failed.
    #[error("a push consumer failed")]
    Consume(#[from] herald_mesh::Error),
}

/// Why an attempt at a chunk failed; the chunk is retried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttemptError {
    #[error("the store failed: {0}")]
    Store(#[from] herald_store::Error),
    #[error("a broker operation failed: {0}")]
    Mesh(#[from] herald_mesh::Error),
    #[error("the claim of the chunk ended before all pushes were sent")]
    ClaimEnded,
    #[error("the service stopped while the chunk waited")]
    Stopped,
    #[error("{0}")]
    Permanent(String),
}

impl Error {
    /// Whether the store can't be used now.
    pub fn is_store_away(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_away())
    }
}

impl AttemptError {
    /// Whether another worker has claimed the chunk.
    pub(crate) fn is_claimed(&self) -> bool {
        matches!(self, Self::Store(error) if error.kind() == ErrorKind::Claimed)
    }

    /// Whether the store can't be used now.
    pub(crate) fn is_store_away(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_away())
    }

    /// Whether the chunk waits in its handler and is tried again: it spends no attempt.
    pub(crate) fn is_wait(&self) -> bool {
        self.is_claimed() || self.is_store_away() || matches!(self, Self::ClaimEnded)
    }
}

impl From<ReadError> for AttemptError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Store(error) => Self::Store(error),
            ReadError::Mesh(error) => Self::Mesh(error),
        }
    }
}

impl From<Classified<Self>> for AttemptError {
    fn from(failure: Classified<Self>) -> Self {
        match failure {
            Classified::Transient(error) => error,
            Classified::Permanent(reason) => Self::Permanent(reason),
        }
    }
}

impl Classify for AttemptError {
    fn class(&self) -> FailureClass {
        match self {
            Self::Store(error) => error.class(),
            Self::Mesh(error) => error.class(),
            Self::ClaimEnded | Self::Stopped => FailureClass::Transient,
            Self::Permanent(_) => FailureClass::Permanent,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Store(error) if error.kind() == ErrorKind::Conflict => Some(CONFLICT_RETRY_DELAY),
            // Another process can take the message at once.
            Self::Stopped => Some(Duration::ZERO),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(kind: ErrorKind) -> AttemptError {
        herald_store::Error::new(kind, "failed").into()
    }

    #[test]
    fn each_kind_has_a_class() {
        assert_eq!(store(ErrorKind::Unavailable).class(), FailureClass::Transient);
        assert_eq!(store(ErrorKind::Corrupt).class(), FailureClass::Permanent);
        assert_eq!(
            AttemptError::Permanent("panic".into()).class(),
            FailureClass::Permanent
        );
    }

    #[test]
    fn a_chunk_waits_for_another_worker_and_for_the_store() {
        for kind in [ErrorKind::Claimed, ErrorKind::Unavailable, ErrorKind::Full] {
            assert!(store(kind).is_wait(), "{kind:?}");
        }
        assert!(AttemptError::ClaimEnded.is_wait());
        for kind in [ErrorKind::Conflict, ErrorKind::Corrupt] {
            assert!(!store(kind).is_wait(), "{kind:?}");
        }
    }

    #[test]
    fn a_conflict_is_retried_after_a_delay() {
        let conflict = store(ErrorKind::Conflict);
        assert_eq!(
            (conflict.class(), conflict.retry_after()),
            (FailureClass::Transient, Some(CONFLICT_RETRY_DELAY))
        );
        assert_eq!(store(ErrorKind::Full).retry_after(), None);
    }
}
