//! Errors of the service and of one step of its work.

use herald_failure::{Classify, FailureClass};
use herald_rpc::status;
use tonic::Status;

/// The reason why the service ended without a shutdown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value of the configuration is out of bounds.
    #[error("{0}")]
    Config(String),
    /// The Protobuf descriptors are malformed.
    #[error("the Protobuf descriptors are malformed")]
    Descriptors(#[source] prost_reflect::DescriptorError),
    /// A consumer failed.
    #[error("a consumer of the deadletter service failed")]
    Consume(#[from] herald_mesh::Error),
    /// The gRPC server failed.
    #[error("the deadletter service's gRPC server failed")]
    Serve(#[source] herald_runtime::grpc::Error),
    /// A task panicked.
    #[error("a task of the deadletter service panicked")]
    Worker(#[source] tokio::task::JoinError),
}

/// The reason why one step of the work failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    /// The store failed.
    #[error("the store failed: {0}")]
    Store(#[from] herald_store::Error),
    /// The mesh failed.
    #[error("a broker operation failed: {0}")]
    Mesh(#[from] herald_mesh::Error),
    /// Another process may hold the lease that guards the work.
    #[error("the lease of the redrives has ended")]
    LeaseLost,
}

impl StepError {
    /// Whether the store can't be used for now: work that needs it waits, and spends no attempt.
    pub(crate) fn is_store_away(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_away())
    }
}

impl Classify for StepError {
    fn class(&self) -> FailureClass {
        match self {
            Self::Store(error) => error.class(),
            Self::Mesh(error) => error.class(),
            Self::LeaseLost => FailureClass::Transient,
        }
    }
}

impl From<StepError> for Status {
    fn from(error: StepError) -> Self {
        match error {
            StepError::Store(error) => status::from_store(&error),
            StepError::Mesh(error) => status::from_mesh(&error),
            StepError::LeaseLost => status::unavailable(
                "LEASE_LOST",
                "another instance runs the redrives now; read the redrive's progress with GetRedrive",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use herald_store::ErrorKind;

    use super::*;

    #[test]
    fn each_kind_has_a_class() {
        let store = |kind| StepError::from(herald_store::Error::new(kind, "failed"));
        assert!(store(ErrorKind::Unavailable).is_transient());
        assert!(!store(ErrorKind::Corrupt).is_transient());
        assert!(store(ErrorKind::Full).is_store_away());
        assert!(!store(ErrorKind::Conflict).is_store_away());
        assert!(!StepError::LeaseLost.is_store_away());
    }
}
