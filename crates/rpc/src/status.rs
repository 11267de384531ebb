//! Builds errors as `google.rpc.Status` with details.
//!
//! Each helper sets the code, a message, and details for programs: an `ErrorInfo` with an UPPER_SNAKE reason and the
//! domain [`DOMAIN`], field violations for an invalid request, and a `RetryInfo` where a retry can succeed.

use std::collections::HashMap;
use std::time::Duration;

use herald_failure::FailureClass;
use herald_runtime::telemetry::error_chain;
use herald_store::ErrorKind;
use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

/// The domain of every `ErrorInfo`.
pub const DOMAIN: &str = "herald.dev";

/// Message of the gRPC library when the caller's deadline ended a call.
const TIMEOUT_EXPIRED: &str = "Timeout expired";

/// Reason of [`rate_limited`].
const RATE_LIMITED: &str = "RATE_LIMITED";
/// Reason of [`quota_exceeded`].
const QUOTA_EXCEEDED: &str = "QUOTA_EXCEEDED";

/// Retry delay of [`unavailable`].
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Retry delay while a store or stream is full: it has to drain, or an operator raises its limit.
const FULL_RETRY_AFTER: Duration = Duration::from_secs(5);

/// INVALID_ARGUMENT `INVALID_FIELD`: `(field, description)` pairs, each as a `BadRequest` violation.
pub fn invalid<F: AsRef<str>, D: AsRef<str>>(violations: &[(F, D)]) -> Status {
    let message = violations
        .iter()
        .map(|(field, description)| format!("{} {}", field.as_ref(), description.as_ref()))
        .collect::<Vec<_>>()
        .join("; ");
    let violations: Vec<_> = violations
        .iter()
        .map(|(field, description)| FieldViolation::new(field.as_ref(), description.as_ref()))
        .collect();
    let mut details = info("INVALID_FIELD");
    details.set_bad_request(violations);
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// UNAVAILABLE: the same call can succeed later; retry after 1 second.
pub fn unavailable(reason: &str, message: impl Into<String>) -> Status {
    let mut details = info(reason);
    details.set_retry_info(Some(RETRY_AFTER));
    Status::with_error_details(Code::Unavailable, message, details)
}

/// RESOURCE_EXHAUSTED: a capacity is used up; retry after this delay.
pub fn exhausted(reason: &str, message: impl Into<String>, retry_after: Duration) -> Status {
    let mut details = info(reason);
    details.set_retry_info(Some(retry_after));
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// RESOURCE_EXHAUSTED: a quota, such as the devices of one user. Has a `QuotaFailure` and no `RetryInfo`: a retry
/// fails.
pub fn quota(reason: &str, subject: impl Into<String>, message: impl Into<String>) -> Status {
    let message = message.into();
    let mut details = info(reason);
    details.add_quota_failure_violation(subject, message.clone());
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// RESOURCE_EXHAUSTED `RATE_LIMITED`: a caller does something too often. Has a `QuotaFailure`, and a `RetryInfo` with the time
/// after which it is admitted.
pub fn rate_limited(subject: impl Into<String>, message: impl Into<String>, retry_after: Duration) -> Status {
    let message = message.into();
    let mut details = info(RATE_LIMITED);
    details.add_quota_failure_violation(subject, message.clone());
    details.set_retry_info(Some(retry_after));
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// RESOURCE_EXHAUSTED `QUOTA_EXCEEDED`: a user has as much as an operator allows. Has a `QuotaFailure`, and a
/// `RetryInfo` if room comes with time.
pub fn quota_exceeded(
    subject: impl Into<String>,
    message: impl Into<String>,
    retry_after: Option<Duration>,
) -> Status {
    let message = message.into();
    let mut details = info(QUOTA_EXCEEDED);
    details.add_quota_failure_violation(subject, message.clone());
    if retry_after.is_some() {
        details.set_retry_info(retry_after);
    }
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// Whether a status is that of [`quota_exceeded`].
pub fn is_quota_exceeded(status: &Status) -> bool {
    let info = status.get_details_error_info();
    info.is_some_and(|info| info.reason == QUOTA_EXCEEDED)
}

/// Whether a status is that of [`rate_limited`].
pub fn is_rate_limited(status: &Status) -> bool {
    let info = status.get_details_error_info();
    info.is_some_and(|info| info.reason == RATE_LIMITED)
}

/// INVALID_ARGUMENT `MESSAGE_TOO_LARGE`: a message exceeds a size limit.
pub fn message_too_large(message: impl Into<String>) -> Status {
    Status::with_error_details(Code::InvalidArgument, message, info("MESSAGE_TOO_LARGE"))
}

/// UNAUTHENTICATED: the caller has no valid credential.
pub fn unauthenticated(reason: &str, message: impl Into<String>) -> Status {
    Status::with_error_details(Code::Unauthenticated, message, info(reason))
}

/// PERMISSION_DENIED: the credential of the caller lacks a scope, which the metadata of the `ErrorInfo` name.
pub fn scope_missing(reason: &str, scope: &str, message: impl Into<String>) -> Status {
    let metadata = HashMap::from([("scope".to_owned(), scope.to_owned())]);
    let details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    Status::with_error_details(Code::PermissionDenied, message, details)
}

/// NOT_FOUND: the resource doesn't exist.
pub fn not_found(reason: &str, message: impl Into<String>) -> Status {
    Status::with_error_details(Code::NotFound, message, info(reason))
}

/// ALREADY_EXISTS: another resource has this id.
pub fn already_exists(reason: &str, message: impl Into<String>) -> Status {
    Status::with_error_details(Code::AlreadyExists, message, info(reason))
}

/// PERMISSION_DENIED: the resource belongs to another user.
pub fn permission_denied(reason: &str, message: impl Into<String>) -> Status {
    Status::with_error_details(Code::PermissionDenied, message, info(reason))
}

/// UNIMPLEMENTED: the port or this version doesn't serve the method.
pub fn unimplemented(reason: &str, message: impl Into<String>) -> Status {
    Status::with_error_details(Code::Unimplemented, message, info(reason))
}

/// FAILED_PRECONDITION: the call fails until the state of the resource changes.
pub fn failed_precondition(reason: &str, message: impl Into<String>) -> Status {
    Status::with_error_details(Code::FailedPrecondition, message, info(reason))
}

/// INTERNAL `INTERNAL`: a bug or corrupt data. Logs the error with its sources; the status contains no detail.
pub fn internal(error: &(dyn std::error::Error + 'static)) -> Status {
    tracing::error!(error = error_chain(error), "call failed");
    Status::with_error_details(
        Code::Internal,
        "internal error: see the server's log",
        info("INTERNAL"),
    )
}

/// DEADLINE_EXCEEDED: the call took longer than its caller or the server allows. It may have taken effect.
pub fn deadline_exceeded(message: impl Into<String>) -> Status {
    Status::with_error_details(Code::DeadlineExceeded, message, info("DEADLINE_EXCEEDED"))
}

/// Whether a status says that the deadline of a call has passed; the gRPC library reports that as CANCELLED.
pub fn is_expired(status: &Status) -> bool {
    status.code() == Code::DeadlineExceeded
        || (status.code() == Code::Cancelled && status.message() == TIMEOUT_EXPIRED)
}

/// Status for the caller of a call that was forwarded to another service of Herald and failed there or on the way.
///
/// | status of the forwarded call | code | reason |
/// |---|---|---|
/// | an answer of the service, with an `ErrorInfo` of [`DOMAIN`] | unchanged | unchanged |
/// | DEADLINE_EXCEEDED, or the deadline ended the call in the gRPC library | DEADLINE_EXCEEDED | `DEADLINE_EXCEEDED` |
/// | CANCELLED, UNKNOWN, INTERNAL, RESOURCE_EXHAUSTED, PERMISSION_DENIED, UNAVAILABLE: the connection failed | UNAVAILABLE, with `RetryInfo` | `SERVICE_UNAVAILABLE` |
/// | others | unchanged | unchanged |
pub fn from_service(service: &str, status: Status) -> Status {
    if is_answer(&status) {
        return status;
    }
    match status.code() {
        _ if is_expired(&status) => deadline_exceeded(format!(
            "{service} did not answer before the deadline of the call"
        )),
        // The codes of broken HTTP/2 connections and streams.
        Code::Cancelled
        | Code::Unknown
        | Code::Internal
        | Code::ResourceExhausted
        | Code::PermissionDenied
        | Code::Unavailable => unavailable(
            "SERVICE_UNAVAILABLE",
            format!("{service} is not available; retry later"),
        ),
        _ => status,
    }
}

/// Whether a retry of a call to another service of Herald can succeed. Same as the class of the error from which the
/// service made the status.
///
/// A status without an `ErrorInfo` of [`DOMAIN`] is not an answer of the service: the connection broke, or the gRPC
/// library refused the call.
pub fn class(status: &Status) -> FailureClass {
    let permanent = match status.code() {
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss => true,
        Code::Internal | Code::Unknown | Code::NotFound | Code::AlreadyExists | Code::PermissionDenied => {
            is_answer(status)
        }
        // A quota, not a full store or stream.
        Code::ResourceExhausted => is_answer(status) && status.get_details_retry_info().is_none(),
        Code::Ok
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Unavailable
        | Code::Unauthenticated => false,
    };
    if permanent {
        FailureClass::Permanent
    } else {
        FailureClass::Transient
    }
}

/// Whether a service of Herald made the status.
fn is_answer(status: &Status) -> bool {
    status
        .get_details_error_info()
        .is_some_and(|info| info.domain == DOMAIN)
}

/// Status of a store's error.
///
/// | kind | code | reason |
/// |---|---|---|
/// | `Unavailable`, `Locked` | UNAVAILABLE, with `RetryInfo` | `STORE_UNAVAILABLE` |
/// | `Full` | RESOURCE_EXHAUSTED, with `RetryInfo` | `STORE_FULL` |
/// | `Failed` | UNAVAILABLE, with `RetryInfo` | `STORE_FAILED` |
/// | `HistoryTrimmed` | FAILED_PRECONDITION | `FOLLOW_HISTORY_TRIMMED` |
/// | `UnknownVersion` | OUT_OF_RANGE | `FOLLOW_VERSION_UNKNOWN` |
/// | `LimitExceeded` | RESOURCE_EXHAUSTED, with `QuotaFailure` | `LIMIT_EXCEEDED` |
/// | `Conflict` | ABORTED | `CONFLICT` |
/// | `Claimed`, `Fenced` | ABORTED | `CLAIMED` |
/// | `Invalid`, `Corrupt` | INTERNAL | `INTERNAL` |
pub fn from_store(error: &herald_store::Error) -> Status {
    match error.kind() {
        ErrorKind::Unavailable | ErrorKind::Locked => {
            tracing::warn!(error = error_chain(error), "store unavailable");
            unavailable("STORE_UNAVAILABLE", "the store is not available")
        }
        ErrorKind::Full => {
            tracing::warn!(error = error_chain(error), "store full");
            exhausted("STORE_FULL", error.to_string(), FULL_RETRY_AFTER)
        }
        ErrorKind::Failed => {
            tracing::warn!(error = error_chain(error), "store failed");
            unavailable("STORE_FAILED", error.to_string())
        }
        ErrorKind::HistoryTrimmed => failed_precondition("FOLLOW_HISTORY_TRIMMED", error.to_string()),
        ErrorKind::UnknownVersion => {
            let details = info("FOLLOW_VERSION_UNKNOWN");
            Status::with_error_details(Code::OutOfRange, error.to_string(), details)
        }
        ErrorKind::LimitExceeded => quota("LIMIT_EXCEEDED", "user", error.to_string()),
        ErrorKind::Conflict => Status::with_error_details(Code::Aborted, error.to_string(), info("CONFLICT")),
        ErrorKind::Claimed | ErrorKind::Fenced => {
            Status::with_error_details(Code::Aborted, error.to_string(), info("CLAIMED"))
        }
        ErrorKind::Invalid | ErrorKind::Corrupt => internal(error),
    }
}

/// Status of a mesh error.
///
/// | kind | code | reason |
/// |---|---|---|
/// | `Full` | RESOURCE_EXHAUSTED, with `RetryInfo` | `STREAM_FULL` |
/// | `Unavailable` | UNAVAILABLE, with `RetryInfo` | `BROKER_UNAVAILABLE` |
/// | `TooLarge` | INVALID_ARGUMENT | `MESSAGE_TOO_LARGE` |
/// | `Conflict`, `Invalid`, `Rejected` | INTERNAL | `INTERNAL` |
pub fn from_mesh(error: &herald_mesh::Error) -> Status {
    use herald_mesh::ErrorKind;
    match error.kind() {
        ErrorKind::Full => {
            tracing::warn!(error = error_chain(error), "stream full");
            exhausted("STREAM_FULL", error.to_string(), FULL_RETRY_AFTER)
        }
        ErrorKind::Unavailable => {
            tracing::warn!(error = error_chain(error), "broker unavailable");
            unavailable(
                "BROKER_UNAVAILABLE",
                if error.is_unanswered() {
                    "the broker doesn't say that it has stored the message; if this lasts, it has frozen the stream after an \
                     error of its disk, and nats-server must be restarted (`herald doctor` tells)"
                } else {
                    "the broker is not available"
                },
            )
        }
        ErrorKind::TooLarge => message_too_large("the message exceeds the broker's maximum message size"),
        ErrorKind::Conflict | ErrorKind::Invalid | ErrorKind::Rejected => internal(error),
    }
}

/// OUT_OF_RANGE: the position is past the end of what a call accepts.
pub fn out_of_range(reason: &str, message: impl Into<String>) -> Status {
    Status::with_error_details(Code::OutOfRange, message, info(reason))
}

/// Converts a status to a message, with its details.
pub fn to_proto(status: &Status) -> tonic_types::pb::Status {
    match tonic_types::pb::Status::decode(status.details()) {
        // The details of a status made by this module are its encoded message.
        Ok(decoded) if decoded.code == i32::from(status.code()) => decoded,
        _ => tonic_types::pb::Status {
            code: status.code().into(),
            message: status.message().into(),
            details: Vec::new(),
        },
    }
}

fn info(reason: &str) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new())
}

#[cfg(test)]
mod tests {
    use herald_failure::Classify as _;

    use super::*;

    #[test]
    fn an_invalid_request_names_each_field() {
        let status = invalid(&[("text", "must not be empty"), ("author_id", "is too long")]);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "text must not be empty; author_id is too long");
        let details = status.get_error_details();
        let fields: Vec<_> = details
            .bad_request()
            .unwrap()
            .field_violations
            .iter()
            .map(|v| v.field.as_str())
            .collect();
        assert_eq!(fields, ["text", "author_id"]);
        assert_eq!(details.error_info().unwrap().domain, DOMAIN);
    }

    #[test]
    fn a_full_store_has_retry_info_and_a_quota_has_none() {
        let full = from_store(&herald_store::Error::new(ErrorKind::Full, "no space left"));
        assert_eq!(full.code(), Code::ResourceExhausted);
        assert_eq!(
            full.get_details_retry_info().unwrap().retry_delay,
            Some(FULL_RETRY_AFTER)
        );
        let limit = from_store(&herald_store::Error::new(ErrorKind::LimitExceeded, "32 devices"));
        assert_eq!(limit.code(), Code::ResourceExhausted);
        assert!(limit.get_details_retry_info().is_none());
        assert!(limit.get_details_quota_failure().is_some());
    }

    #[test]
    fn a_status_is_converted_with_its_details() {
        let converted = to_proto(&invalid(&[("text", "must not be empty")]));
        assert_eq!(
            (converted.code, converted.message.as_str()),
            (i32::from(Code::InvalidArgument), "text must not be empty")
        );
        let details: Vec<_> = converted
            .details
            .iter()
            .map(|any| any.type_url.as_str())
            .collect();
        assert_eq!(
            details,
            [
                "type.googleapis.com/google.rpc.ErrorInfo",
                "type.googleapis.com/google.rpc.BadRequest"
            ]
        );
        let plain = to_proto(&Status::aborted("changed"));
        assert_eq!((plain.code, plain.message.as_str()), (10, "changed"));
        assert!(plain.details.is_empty());
    }

    #[test]
    fn an_internal_status_hides_the_error_text() {
        let status = from_store(&herald_store::Error::new(
            ErrorKind::Corrupt,
            "block 7 of /data/records",
        ));
        assert_eq!(status.code(), Code::Internal);
        assert!(!status.message().contains("/data"));
    }

    #[test]
    fn the_class_of_a_store_error_survives_a_call() {
        for kind in [
            ErrorKind::Unavailable,
            ErrorKind::Full,
            ErrorKind::HistoryTrimmed,
            ErrorKind::UnknownVersion,
            ErrorKind::LimitExceeded,
            ErrorKind::Conflict,
            ErrorKind::Claimed,
            ErrorKind::Fenced,
            ErrorKind::Invalid,
            ErrorKind::Corrupt,
            ErrorKind::Locked,
            ErrorKind::Failed,
        ] {
            let error = herald_store::Error::new(kind, "failed");
            let status = from_store(&error);
            assert_eq!(class(&status), error.class(), "{kind:?}: {status:?}");
            let forwarded = from_service("GraphService", status.clone());
            assert_eq!(
                (forwarded.code(), forwarded.details()),
                (status.code(), status.details())
            );
        }
    }

    #[test]
    fn a_broken_connection_is_transient_and_unavailable_for_the_caller() {
        for code in [
            Code::Cancelled,
            Code::Unknown,
            Code::Internal,
            Code::ResourceExhausted,
            Code::PermissionDenied,
            Code::Unavailable,
        ] {
            let broken = Status::new(code, "transport error");
            assert_eq!(class(&broken), FailureClass::Transient, "{code:?}");
            let forwarded = from_service("GraphService", broken);
            assert_eq!(forwarded.code(), Code::Unavailable, "{code:?}");
            let details = forwarded.get_error_details();
            assert_eq!(details.error_info().unwrap().reason, "SERVICE_UNAVAILABLE");
            assert!(details.retry_info().is_some());
        }
        for expired in [
            Status::deadline_exceeded("too late"),
            Status::cancelled("Timeout expired"),
        ] {
            assert_eq!(class(&expired), FailureClass::Transient);
            assert_eq!(
                from_service("GraphService", expired).code(),
                Code::DeadlineExceeded
            );
        }
    }

    #[test]
    fn a_call_that_the_library_refuses_is_permanent_and_unchanged() {
        for code in [
            Code::InvalidArgument,
            Code::FailedPrecondition,
            Code::OutOfRange,
            Code::Unimplemented,
            Code::DataLoss,
        ] {
            let refused = Status::new(code, "refused");
            assert_eq!(class(&refused), FailureClass::Permanent, "{code:?}");
            assert_eq!(from_service("GraphService", refused).code(), code);
        }
        for code in [
            Code::NotFound,
            Code::AlreadyExists,
            Code::Aborted,
            Code::Unauthenticated,
        ] {
            assert_eq!(class(&Status::new(code, "")), FailureClass::Transient, "{code:?}");
        }
        assert_eq!(class(&not_found("USER_NOT_FOUND", "")), FailureClass::Permanent);
        assert_eq!(
            class(&permission_denied("OTHER_USER", "")),
            FailureClass::Permanent
        );
    }
}
