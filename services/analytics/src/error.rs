//! Errors that end the service, and errors of a batch.

use herald_failure::{Classify, FailureClass};

/// Why the service ended without a shutdown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is invalid.
    #[error("{0}")]
    Config(String),
    /// The topology lacks a consumer of this service.
    #[error("the topology has no consumer {0}")]
    NoConsumer(&'static str),
    /// The directory `analytics.dir` can't be used.
    #[error("the directory analytics.dir can't be opened; check its path and permissions")]
    Open(#[source] object_store::Error),
    /// A consumer failed.
    #[error("an analytics consumer failed")]
    Consume(#[source] herald_mesh::Error),
    /// The gRPC server failed.
    #[error("the analytics service's gRPC server failed")]
    Serve(#[source] herald_runtime::grpc::Error),
    /// A worker task panicked.
    #[error("an analytics worker panicked")]
    Worker(#[source] tokio::task::JoinError),
}

/// Why a batch, or a file of it, failed; its messages are redelivered.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The store of the totals failed.
    #[error("the store failed: {0}")]
    Store(#[from] herald_store::Error),
    /// Another instance has counted messages or chunks of the file meanwhile.
    #[error("another instance has counted a part of the file")]
    Overtaken,
    /// The object store failed.
    #[error("the object store failed: {0}")]
    Objects(#[from] object_store::Error),
    /// The rows can't be encoded as Parquet.
    #[error("encoding the rows as Parquet failed: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
    /// The encoding task panicked, or was cancelled because the runtime shuts down.
    #[error("the encoding task ended: {0}")]
    Encoding(#[from] tokio::task::JoinError),
    /// Uncounted files of an earlier failure can't be deleted. No file is written until they are.
    #[error("uncounted files can't be deleted: {0}")]
    Leftovers(#[source] Box<Self>),
}

impl CommitError {
    /// Whether the store can't be used for now.
    pub(crate) fn is_store_away(&self) -> bool {
        match self {
            Self::Store(error) => error.is_away(),
            Self::Leftovers(error) => error.is_store_away(),
            Self::Overtaken | Self::Objects(_) | Self::Parquet(_) | Self::Encoding(_) => false,
        }
    }
}

impl Classify for CommitError {
    fn class(&self) -> FailureClass {
        match self {
            Self::Store(error) => error.class(),
            Self::Parquet(_) => FailureClass::Permanent,
            Self::Encoding(ended) if ended.is_panic() => FailureClass::Permanent,
            // Not caused by single messages, so bisecting the batch can't help.
            Self::Objects(_) | Self::Leftovers(_) | Self::Encoding(_) | Self::Overtaken => {
                FailureClass::Transient
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use herald_store::ErrorKind;
    use parquet::errors::ParquetError;

    use super::*;

    #[tokio::test]
    async fn each_kind_has_a_class() {
        let store = |kind| CommitError::from(herald_store::Error::new(kind, "failed"));
        let panicked = tokio::spawn(async { panic!("on purpose") }).await.unwrap_err();
        let pending = tokio::spawn(std::future::pending::<()>());
        pending.abort();
        let aborted = pending.await.unwrap_err();
        for (error, class) in [
            (store(ErrorKind::Unavailable), FailureClass::Transient),
            (store(ErrorKind::Corrupt), FailureClass::Permanent),
            (
                object_store::Error::NotImplemented {
                    operation: "put".into(),
                    implementer: "test".into(),
                }
                .into(),
                FailureClass::Transient,
            ),
            (
                CommitError::Leftovers(Box::new(store(ErrorKind::Corrupt))),
                FailureClass::Transient,
            ),
            (
                ParquetError::General("failed".into()).into(),
                FailureClass::Permanent,
            ),
            (CommitError::Overtaken, FailureClass::Transient),
            (panicked.into(), FailureClass::Permanent),
            (aborted.into(), FailureClass::Transient),
        ] {
            assert_eq!(error.class(), class, "{error}");
        }
    }
}
