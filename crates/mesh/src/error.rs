//! What can go wrong, by what a caller can do about it.

use std::error::Error as StdError;
use std::fmt;

use async_nats::jetstream;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use herald_failure::{Classify, FailureClass};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The stream, or the server's storage, is full: refuse work until it drains.
    Full,
    /// The server, the stream or the answer isn't there now: try again later. A publish that ended so may still have
    /// been stored; the same id makes trying again safe.
    Unavailable,
    /// The message is larger than the server or the stream takes: trying again is no use.
    TooLarge,
    /// What is on the server can't be changed into what is wanted: someone has to decide.
    Conflict,
    /// The configuration is wrong: correct it.
    Invalid,
    /// The server said no for another reason: trying again is no use.
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

/// A kind, a sentence, and what it came from.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// What can be done about it.
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

    /// No answer, or one that isn't JetStream's.
    pub(crate) fn unavailable(
        message: impl fmt::Display,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self::with_source(ErrorKind::Unavailable, message, source)
    }

    /// An answer of JetStream's to something other than a change of the topology.
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
            // Either JetStream's own error, or a broken connection.
            PublishErrorKind::Other => error
                .source()
                .and_then(|source| source.downcast_ref::<jetstream::Error>())
                .map_or(ErrorKind::Unavailable, kind_of),
        };
        Self::with_source(kind, format_args!("publish to {subject}"), error)
    }
}

/// Every kind is transient for a worker: no message is at fault for what the broker refuses, and an operator may raise a limit
/// or repair a stream while the message is retried.
impl Classify for Error {
    fn class(&self) -> FailureClass {
        match self.kind {
            ErrorKind::Full
            | ErrorKind::Unavailable
            | ErrorKind::TooLarge
            | ErrorKind::Conflict
            | ErrorKind::Invalid
            | ErrorKind::Rejected => FailureClass::Transient,
        }
    }
}

/// JetStream's codes, by what can be done about them.
pub(crate) fn kind_of(error: &jetstream::Error) -> ErrorKind {
    match error.error_code() {
        // "maximum bytes exceeded", "maximum messages exceeded" and "no space left on device" come under this code;
        // so does any other failure of the store, which is as likely to pass.
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
    fn each_kind_is_transient() {
        for kind in [
            ErrorKind::Full,
            ErrorKind::Unavailable,
            ErrorKind::TooLarge,
            ErrorKind::Conflict,
            ErrorKind::Invalid,
            ErrorKind::Rejected,
        ] {
            assert_eq!(
                Error::new(kind, "failed").class(),
                FailureClass::Transient,
                "{kind}"
            );
        }
    }
}
