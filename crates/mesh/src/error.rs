//! Errors of the mesh, classified by the caller's next step.

use std::error::Error as StdError;
use std::fmt;

use async_nats::jetstream;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
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
        let kind = match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => ErrorKind::TooLarge,
            PublishErrorKind::StreamNotFound
            | PublishErrorKind::TimedOut
            | PublishErrorKind::BrokenPipe
            | PublishErrorKind::MaxAckPending => ErrorKind::Unavailable,
            PublishErrorKind::WrongLastMessageId | PublishErrorKind::WrongLastSequence => ErrorKind::Rejected,
            // An error of JetStream, or a broken connection.
            PublishErrorKind::Other => error
                .source()
                .and_then(|source| source.downcast_ref::<jetstream::Error>())
                .map_or(ErrorKind::Unavailable, |refused| match kind_of(refused) {
                    // An error in the server, not of the message.
                    ErrorKind::Rejected if refused.code() >= 500 => ErrorKind::Unavailable,
                    kind => kind,
                }),
        };
        if kind == ErrorKind::Full {
            let reason = error
                .source()
                .map_or_else(|| error.to_string(), ToString::to_string);
            return Self {
                kind,
                message: crate::full::describe(subject, &reason),
                source: Some(error.into()),
            };
        }
        Self::with_source(kind, format_args!("publish to {subject}"), error)
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
        // JetStream uses this code for "maximum bytes exceeded", "maximum messages exceeded", "no space left on device"
        // and every other store failure; the others are treated as transient.
        ErrorCode::STREAM_STORE_FAILED => {
            let text = error.to_string();
            if [
                "maximum bytes",
                "maximum messages",
                "no space left",
                "resource limits exceeded",
            ]
            .iter()
            .any(|part| text.contains(part))
            {
                ErrorKind::Full
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

    /// The kind of a publish that JetStream refused with this code and error code.
    fn publish_kind(code: usize, error_code: u64) -> ErrorKind {
        let json = format!(r#"{{"code": {code}, "err_code": {error_code}, "description": "failed"}}"#);
        let refused: jetstream::Error = serde_json::from_str(&json).unwrap();
        Error::publish(
            "post.v1",
            PublishError::with_source(PublishErrorKind::Other, refused),
        )
        .kind()
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
}
