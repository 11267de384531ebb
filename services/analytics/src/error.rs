//! Why the service ended, and why a batch was not done.

use herald_failure::{Classify, FailureClass};

/// Why the service ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is out of bounds.
    #[error("{0}")]
    Config(String),
    /// The topology has no such consumer.
    #[error("the topology has no consumer {0}")]
    NoConsumer(&'static str),
    /// The folder of the files can't be used.
    #[error("the object store can't be opened")]
    Open(#[source] object_store::Error),
    /// What an earlier run left over can't be removed.
    #[error("files left over by an earlier run can't be removed")]
    Leftovers(#[source] CommitError),
    /// A consumer can't be worked on.
    #[error("an analytics consumer can't be worked on")]
    Consume(#[source] herald_mesh::Error),
    /// The gRPC server failed.
    #[error("the analytics service's gRPC server failed")]
    Serve(#[source] herald_runtime::grpc::Error),
    /// A worker died.
    #[error("an analytics worker died")]
    Worker(#[source] tokio::task::JoinError),
}

/// Why a batch, or a part of it, was not done; its messages come again.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The store of the totals failed.
    #[error("the store failed: {0}")]
    Store(#[from] herald_store::Error),
    /// The object store failed.
    #[error("the object store failed: {0}")]
    Objects(#[from] object_store::Error),
    /// The rows can't be coded.
    #[error("the rows can't be coded: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
    /// Coding the rows panicked, or the runtime shuts down.
    #[error("coding the rows ended: {0}")]
    Coding(#[from] tokio::task::JoinError),
    /// What an earlier failure left over can't be removed, and nothing is written as long as it is there.
    #[error("files left over can't be removed: {0}")]
    Leftovers(#[source] Box<Self>),
}

impl Classify for CommitError {
    fn class(&self) -> FailureClass {
        match self {
            Self::Store(error) => error.class(),
            Self::Parquet(_) => FailureClass::Permanent,
            Self::Coding(ended) if ended.is_panic() => FailureClass::Permanent,
            // No message is at fault: what repairs it repairs it for all of them.
            Self::Objects(_) | Self::Leftovers(_) | Self::Coding(_) => FailureClass::Transient,
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
            (panicked.into(), FailureClass::Permanent),
            (aborted.into(), FailureClass::Transient),
        ] {
            assert_eq!(error.class(), class, "{error}");
        }
    }
}
