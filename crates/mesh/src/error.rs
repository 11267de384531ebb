//! Errors of the mesh, classified by the caller's next step.

use std::error::Error as StdError;
use std::fmt;

use async_nats::jetstream;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::{ConnectError, ConnectErrorKind};
use herald_failure::{Classify, FailureClass};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Kind of an [`Error`]: the caller's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The stream or the server's storage is full: refuse work until it drains.
    Full,
    /// The server or the stream is unavailable, or the answer was lost: retry later. A publish may still have been
    /// stored; a retry with the same id is idempotent.
    Unavailable,
    /// The message exceeds the size limit of the server or the stream: don't retry.
    TooLarge,
    /// An existing stream or consumer can't be changed to its specification: an operator must decide.
    Conflict,
    /// An argument or the configuration is invalid: correct it.
    Invalid,
    /// The server refused for another reason: don't retry.
    Rejected,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Unavailable => "unavailable",
            Self::TooLarge => "too large",
            Self::Conflict => "conflict",
            Self::Invalid => "invalid",
            Self::Rejected => "rejected",
        })
    }
}

/// An error of the mesh: kind, message and source.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
    /// Whether the stream's leader holds the message id for a publish that isn't decided.
    id_in_process: bool,
}

impl Error {
    /// Kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
            id_in_process: false,
        }
    }

    pub(crate) fn with_source(
        kind: ErrorKind,
        message: impl fmt::Display,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        let source = source.into();
        Self {
            kind,
            message: format!("{message}: {source}"),
            source: Some(source),
            id_in_process: false,
        }
    }

    /// [`ErrorKind::Unavailable`]: no answer, or not an answer of JetStream.
    pub(crate) fn unavailable(
        message: impl fmt::Display,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self::with_source(ErrorKind::Unavailable, message, source)
    }

    /// An error returned by JetStream; [`kind_of`] gives the kind.
    pub(crate) fn jetstream(message: impl fmt::Display, error: jetstream::Error) -> Self {
        Self::with_source(kind_of(&error), message, error)
    }

    pub(crate) fn publish(subject: &str, error: PublishError) -> Self {
        let refused = error
            .source()
            .and_then(|source| source.downcast_ref::<jetstream::Error>());
        let id_in_process = refused
            .is_some_and(|refused| refused.error_code() == ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT);
        let kind = match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => ErrorKind::TooLarge,
            PublishErrorKind::StreamNotFound
            | PublishErrorKind::TimedOut
            | PublishErrorKind::BrokenPipe
            | PublishErrorKind::MaxAckPending => ErrorKind::Unavailable,
            PublishErrorKind::WrongLastMessageId | PublishErrorKind::WrongLastSequence => ErrorKind::Rejected,
            // An error of JetStream, or a broken connection.
            PublishErrorKind::Other => {
                refused.map_or(ErrorKind::Unavailable, |refused| match kind_of(refused) {
                    // An error in the server, not of the message.
                    ErrorKind::Rejected if refused.code() >= 500 => ErrorKind::Unavailable,
                    kind => kind,
                })
            }
        };
        if kind == ErrorKind::Full {
            let reason = error
                .source()
                .map_or_else(|| error.to_string(), ToString::to_string);
            return Self {
                kind,
                message: crate::full::describe(subject, &reason),
                source: Some(error.into()),
                id_in_process: false,
            };
        }
        Self {
            id_in_process,
            ..Self::with_source(kind, format_args!("publish to {subject}"), error)
        }
    }

    /// Whether a connection could not be made because nothing refused it and nothing answered: the server hangs, or its
    /// machine is cut off.
    pub fn is_silence(&self) -> bool {
        let source = self.source.as_ref().and_then(|source| source.downcast_ref());
        source.is_some_and(|error: &ConnectError| error.kind() == ConnectErrorKind::TimedOut)
    }

    /// Whether the server took a message and didn't answer in time whether it is stored: it hangs, is overloaded, or
    /// has frozen the stream after an error of its disk.
    pub fn is_unanswered(&self) -> bool {
        let source = self.source.as_ref().and_then(|source| source.downcast_ref());
        source.is_some_and(|error: &PublishError| error.kind() == PublishErrorKind::TimedOut)
    }

    /// Whether the leader of the stream refused the message because a publish with its id isn't decided.
    pub(crate) fn is_id_in_process(&self) -> bool {
        self.id_in_process
    }
}

/// A full or unavailable broker recovers while the message is retried. The other kinds come from the message, the
/// program or the configuration: each retry fails too, and the message becomes a dead letter.
impl Classify for Error {
    fn class(&self) -> FailureClass {
        match self.kind {
            ErrorKind::Full | ErrorKind::Unavailable => FailureClass::Transient,
            ErrorKind::TooLarge | ErrorKind::Conflict | ErrorKind::Invalid | ErrorKind::Rejected => {
                FailureClass::Permanent
            }
        }
    }
}

/// Maps JetStream's error codes to kinds.
pub(crate) fn kind_of(error: &jetstream::Error) -> ErrorKind {
    match error.error_code() {
        // JetStream uses this code for "maximum bytes exceeded", "maximum messages exceeded", "no space left on device",
        // "message too large" and every other store failure; the others are treated as transient.
        ErrorCode::STREAM_STORE_FAILED => {
            let text = error.to_string();
            let contains = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
            if contains(&[
                "maximum bytes",
                "maximum messages",
                "no space left",
                "resource limits exceeded",
            ]) {
                ErrorKind::Full
            } else if contains(&["message too large"]) {
                ErrorKind::TooLarge
            } else {
                ErrorKind::Unavailable
            }
        }
        ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED => ErrorKind::Full,
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => {
            ErrorKind::TooLarge
        }
        // States of the server or the account, which end without a change of the message: another publish with this id
        // is not decided yet (see `Mesh::publish`), the queue of the stream is full, the account's limits are not
        // loaded, or too few servers have joined a cluster.
        ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT
        | ErrorCode::STREAM_TOO_MANY_REQUESTS
        | ErrorCode::NO_LIMITS
        | ErrorCode::CLUSTER_NO_PEERS => ErrorKind::Unavailable,
        _ if error.code() == 404 || error.code() == 503 => ErrorKind::Unavailable,
        _ => ErrorKind::Rejected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_class() {
        for (kind, class) in [
            (ErrorKind::Full, FailureClass::Transient),
            (ErrorKind::Unavailable, FailureClass::Transient),
            (ErrorKind::TooLarge, FailureClass::Permanent),
            (ErrorKind::Conflict, FailureClass::Permanent),
            (ErrorKind::Invalid, FailureClass::Permanent),
            (ErrorKind::Rejected, FailureClass::Permanent),
        ] {
            assert_eq!(Error::new(kind, "failed").class(), class, "{kind}");
        }
    }

    /// The error of a publish that JetStream refused with this answer.
    fn refused(code: usize, error_code: u64, description: &str) -> Error {
        let json = format!(r#"{{"code": {code}, "err_code": {error_code}, "description": "{description}"}}"#);
        let refused: jetstream::Error = serde_json::from_str(&json).unwrap();
        Error::publish(
            "post.v1",
            PublishError::with_source(PublishErrorKind::Other, refused),
        )
    }

    /// The kind of a publish that JetStream refused with this code and error code.
    fn publish_kind(code: usize, error_code: u64) -> ErrorKind {
        refused(code, error_code, "failed").kind()
    }

    #[test]
    fn a_publish_that_fails_in_the_server_is_retried_and_a_refused_one_is_not() {
        // 10047: insufficient storage. 10054: the message exceeds the maximum size. 10109: the stream is sealed.
        assert_eq!(publish_kind(500, 10_047), ErrorKind::Full);
        assert_eq!(publish_kind(400, 10_054), ErrorKind::TooLarge);
        assert_eq!(publish_kind(400, 10_109), ErrorKind::Rejected);
        // 10051: general stream error. 10118: the stream is offline.
        assert_eq!(publish_kind(500, 10_051), ErrorKind::Unavailable);
        assert_eq!(publish_kind(500, 10_118), ErrorKind::Unavailable);
    }
    #[test]
    fn a_publish_that_meets_a_state_of_the_server_is_retried() {
        // 10023: insufficient resources. 10002: limits of the account.
        assert_eq!(publish_kind(503, 10_023), ErrorKind::Full);
        assert_eq!(publish_kind(400, 10_002), ErrorKind::Full);
        // 10167: the stream gets too many requests. 10120: no limits for the account. 10039: JetStream is not enabled
        // for the account. 10059: the stream is not found. 10163: the last sequence isn't known yet.
        for (code, error_code) in [
            (429, 10_167),
            (400, 10_120),
            (503, 10_039),
            (404, 10_059),
            (503, 10_163),
        ] {
            assert_eq!(
                publish_kind(code, error_code),
                ErrorKind::Unavailable,
                "{error_code}"
            );
        }
        // 10158: a publish with this id is in process.
        let in_process = refused(409, 10_158, "duplicate message id is in process");
        assert_eq!(in_process.kind(), ErrorKind::Unavailable);
        assert!(in_process.is_id_in_process());
        assert!(!refused(429, 10_167, "too many requests").is_id_in_process());
    }

    #[test]
    fn a_failed_store_has_the_kind_of_its_reason() {
        for (reason, kind) in [
            ("maximum bytes exceeded", ErrorKind::Full),
            ("message too large", ErrorKind::TooLarge),
            ("store is closed", ErrorKind::Unavailable),
        ] {
            assert_eq!(refused(503, 10_077, reason).kind(), kind, "{reason}");
        }
    }

    #[test]
    fn a_publish_that_the_message_or_the_topology_makes_impossible_is_not_retried() {
        // 10060: another stream is expected. 10071, 10164: wrong last sequence. 10070: wrong last id. 10097: the header
        // exceeds the maximum. 10165, 10166: time to live. 10188: message schedules are disabled.
        for error_code in [10_060, 10_070, 10_071, 10_164, 10_165, 10_166, 10_188] {
            assert_eq!(publish_kind(400, error_code), ErrorKind::Rejected, "{error_code}");
        }
        assert_eq!(publish_kind(400, 10_097), ErrorKind::TooLarge);
    }
}
