//! What a worker gets, and what it answers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, header};
use async_trait::async_trait;
use bytes::Bytes;
use herald_failure::{Classify, FailureClass};
use herald_model::time::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};
use crate::pull::Puller;
use crate::topology::ConsumerSpec;
use crate::{Mesh, Redriven, Subject, headers};

/// The business of a worker: one message.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Handles a delivery, and says what becomes of it.
    ///
    /// Calls run concurrently, each on a task of its own, in the order in which they were delivered only by chance. The
    /// same message can come again at any time, so handling it twice must be as handling it once: commit, then return
    /// [`Disposition::Ack`]. While it runs, the message is kept from other workers, however long that takes. A panic counts
    /// as [`Disposition::Fault`]. The future is dropped when it still runs `ack_wait` after the shutdown began.
    async fn handle(&self, delivery: &Delivery) -> Disposition;
}

/// What becomes of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposition {
    /// It is done.
    Ack,
    /// It comes again, until its attempts are used up; then it is terminated with this reason.
    Retry {
        /// When; after the consumer's own delay for the attempt without it. A consumer of push spends a long wait in the
        /// stream LATER, and the message that comes back has another sequence.
        after: Option<Duration>,
        /// Why, for the log and the dead letter: lowercase, without anything secret.
        reason: String,
    },
    /// As [`Disposition::Retry`], but waiting doesn't mend it: a corrupt row, a bug. Something else may, so it comes again, but
    /// only until its attempts are as many as a fault gets.
    Fault {
        /// Why, for the log and the dead letter: lowercase, without anything secret.
        reason: String,
    },
    /// It never comes again.
    Term {
        /// Why, for the log and the dead letter: lowercase, without anything secret.
        reason: String,
    },
}

impl Disposition {
    /// Again, after the consumer's own delay.
    pub fn retry(reason: impl fmt::Display) -> Self {
        Self::Retry {
            after: None,
            reason: reason.to_string(),
        }
    }

    /// Again, after this time.
    pub fn retry_after(after: Duration, reason: impl fmt::Display) -> Self {
        Self::Retry {
            after: Some(after),
            reason: reason.to_string(),
        }
    }

    /// Again, but not for long.
    pub fn fault(reason: impl fmt::Display) -> Self {
        Self::Fault {
            reason: reason.to_string(),
        }
    }

    /// Never again.
    pub fn term(reason: impl fmt::Display) -> Self {
        Self::Term {
            reason: reason.to_string(),
        }
    }
}

/// What becomes of a message whose handler failed: a transient failure is retried, a permanent one is a fault.
impl<E: Classify + fmt::Display> From<E> for Disposition {
    fn from(error: E) -> Self {
        match error.class() {
            FailureClass::Transient => Self::Retry {
                after: error.retry_after(),
                reason: error.to_string(),
            },
            FailureClass::Permanent => Self::fault(error),
        }
    }
}

/// One message, delivered.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Where it was published, the first time.
    pub subject: Subject,
    /// The encoded message.
    pub payload: Bytes,
    /// Its sequence in the stream where it was published the first time.
    pub sequence: u64,
    /// Which attempt this is, from 1.
    pub attempt: u64,
    /// How many there are.
    pub attempts_max: u64,
    /// When the stream stored it, the first time.
    pub published_at: Timestamp,
    /// That it had been given up, and comes once more because somebody wants it so.
    pub redrive: Option<Redriven>,
    /// Messages that the consumer had left when it delivered this one.
    pub pending_count: u64,
    pub(crate) headers: Option<HeaderMap>,
}

impl Delivery {
    /// A first delivery, published now; for the tests of handlers.
    pub fn first(subject: Subject, payload: impl Into<Bytes>, sequence: u64) -> Self {
        Self {
            subject,
            payload: payload.into(),
            sequence,
            attempt: 1,
            attempts_max: u64::MAX,
            published_at: Timestamp::now(),
            redrive: None,
            pending_count: 0,
            headers: None,
        }
    }

    /// Decodes the message. The error is the way to settle one that can't be: terminated, as no retry makes it
    /// readable.
    pub fn decode<M: prost::Message + Default>(&self) -> Result<M, Disposition> {
        M::decode(self.payload.clone()).map_err(|error| {
            Disposition::term(format_args!(
                "undecodable {} on {}: {error}",
                self.subject.message_type(),
                self.subject
            ))
        })
    }

    /// The id it was published with; each redrive has its own.
    pub fn id(&self) -> Option<&str> {
        Some(self.headers.as_ref()?.get(header::NATS_MESSAGE_ID)?.as_str())
    }

    /// The trace that its publisher was in, as W3C writes it.
    pub fn trace_parent(&self) -> Option<&str> {
        self.header(headers::TRACE_PARENT)
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        headers::get(self.headers.as_ref()?, name)
    }

    /// Whether no attempt comes after this one.
    pub fn is_last_attempt(&self) -> bool {
        self.attempt >= self.attempts_max
    }
}

/// How a worker takes messages.
#[derive(Debug, Clone)]
pub struct ConsumeOptions {
    /// Messages handled at a time, at most; 1 to 32,768. A message is asked for only when there is room for it.
    pub in_flight_max: usize,
    /// Messages asked for at a time, at most; at least 1.
    pub batch_max: usize,
    /// While it is true, nothing is fetched; what is running goes on.
    pub paused: Option<watch::Receiver<bool>>,
}

impl Default for ConsumeOptions {
    fn default() -> Self {
        Self {
            in_flight_max: 64,
            batch_max: 64,
            paused: None,
        }
    }
}

impl Mesh {
    /// Handles a consumer's messages until the shutdown, then drains: no more is fetched, messages that no handler has
    /// seen go back at once, running handlers have `ack_wait` to finish.
    ///
    /// It outlives restarts of the server. A consumer that is missing is made again; it then starts from the stream's
    /// first message.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for options out of bounds; [`ErrorKind::Conflict`] when the consumer is missing and
    /// can't be made as the specification says.
    pub async fn consume<H: Handler>(
        &self,
        consumer: &ConsumerSpec,
        handler: Arc<H>,
        options: ConsumeOptions,
        shutdown: CancellationToken,
    ) -> Result<()> {
        if !(1..=32_768).contains(&options.in_flight_max) {
            return Err(Error::new(
                ErrorKind::Invalid,
                "in_flight_max must be from 1 to 32768",
            ));
        }
        if options.batch_max == 0 {
            return Err(Error::new(ErrorKind::Invalid, "batch_max must be at least 1"));
        }
        Puller::new(self.clone(), consumer.clone(), handler, options, shutdown)
            .run()
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("failed")]
    struct Failed(FailureClass, Option<Duration>);

    impl Classify for Failed {
        fn class(&self) -> FailureClass {
            self.0
        }

        fn retry_after(&self) -> Option<Duration> {
            self.1
        }
    }

    #[test]
    fn a_failure_is_settled_by_its_class() {
        let (class, second) = (FailureClass::Transient, Duration::from_secs(1));
        assert_eq!(
            Disposition::from(Failed(class, None)),
            Disposition::retry("failed")
        );
        assert_eq!(
            Disposition::from(Failed(class, Some(second))),
            Disposition::retry_after(second, "failed")
        );
        assert_eq!(
            Disposition::from(Failed(FailureClass::Permanent, None)),
            Disposition::fault("failed")
        );
    }
}
