//! Errors that end the service, and failures of calls.

use herald_rpc::status;
use tonic::Status;

use crate::domain::{Failure, Violation};

/// Why the service ended without a shutdown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is invalid.
    #[error("{0}")]
    Config(String),
    /// The topology lacks a consumer of a worker.
    #[error("the topology has no consumer {0}")]
    UnknownConsumer(&'static str),
    /// The gRPC server failed.
    #[error("the scaler's gRPC server failed")]
    Serve(#[source] herald_runtime::grpc::Error),
}

/// UNAVAILABLE while the server doesn't answer, FAILED_PRECONDITION for a consumer that it doesn't have. KEDA does not read
/// either as 0.
pub(crate) fn failure_to_status(failure: &Failure) -> Status {
    match failure {
        Failure::Missing { stream, consumer } => status::failed_precondition(
            "CONSUMER_MISSING",
            format!(
                "consumer {consumer} of stream {stream} does not exist: run `herald topology apply`, or start any other \
                 role, which makes it"
            ),
        ),
        Failure::Unavailable { reason } => status::unavailable(
            "BROKER_UNAVAILABLE",
            format!("the work is not known, because NATS can't be read: {reason}"),
        ),
    }
}

pub(crate) fn violation_to_status(violation: &Violation) -> Status {
    let field = format!("scalerMetadata.{}", violation.key);
    status::invalid(&[(field.as_str(), violation.description.as_str())])
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn a_failure_says_what_to_do() {
        let missing = failure_to_status(&Failure::Missing {
            stream: "PUSH".into(),
            consumer: "push-low".into(),
        });
        assert_eq!(missing.code(), Code::FailedPrecondition);
        assert!(
            missing
                .message()
                .starts_with("consumer push-low of stream PUSH does not exist: run")
        );
        let away = failure_to_status(&Failure::Unavailable {
            reason: "no answer".into(),
        });
        assert_eq!(away.code(), Code::Unavailable);
        assert!(away.message().ends_with("no answer"));
    }
}
