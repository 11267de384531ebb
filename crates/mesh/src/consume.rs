//! The interface of workers: [`Handler`], [`Delivery`] and [`Disposition`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, header};
use async_trait::async_trait;
use bytes::Bytes;
use herald_failure::{Classify, FailureClass};
use herald_model::{PostScoped, time::Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::delay_queue::DelayQueue;
use crate::error::{Error, ErrorKind, Result};
use crate::pull::Puller;
use crate::slot::Slot;
use crate::topology::ConsumerSpec;
use crate::{Mesh, MessageLink, Redriven, Subject, headers};

/// Handles the messages of a consumer.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Handles one delivery and returns its disposition.
    ///
    /// Calls run concurrently, each on its own task, in no particular order. Messages are redelivered, so handling must
    /// be idempotent: commit, then return [`Disposition::Ack`]. While the handler runs, heartbeats prevent a redelivery
    /// to another worker. A panic counts as [`Disposition::Fault`]. The future is dropped when it is still running
    /// `drain_seconds` after the start of the shutdown.
    async fn handle(&self, delivery: &Delivery) -> Disposition;

    /// Whether the handler collects messages and handles them in batches. Its messages have no spans of their own, which
    /// would show the wait for the batch; it opens a [`batch_span`](crate::batch_span) a batch instead.
    fn handles_batches(&self) -> bool {
        false
    }
}

/// How to settle a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposition {
    /// Acknowledge: the message is done.
    Ack,
    /// Transient error: redeliver the message, or terminate it with this reason on the last attempt.
    Retry {
        /// Delay before the retry; `None` uses the consumer's back-off. With a long delay, a message of PUSH moves to
        /// the delay queue and is redelivered with another sequence.
        after: Option<Duration>,
        /// Reason, for the log and the dead letter: lowercase, without secrets.
        reason: String,
    },
    /// Permanent error, such as a corrupt row or a bug: redeliver the message with the consumer's back-off, but only
    /// `fault_attempts_max` times. A repair or a restart may help.
    Fault {
        /// Reason, for the log and the dead letter: lowercase, without secrets.
        reason: String,
    },
    /// Not an error: the message waits for something, and a copy of it continues. Spends no attempt.
    Wait(Wait),
    /// Terminate the message now.
    Term {
        /// Reason, for the log and the dead letter: lowercase, without secrets.
        reason: String,
    },
}

impl Disposition {
    /// A retry with the consumer's back-off.
    pub fn retry(reason: impl fmt::Display) -> Self {
        Self::Retry {
            after: None,
            reason: reason.to_string(),
        }
    }

    /// A retry after this delay.
    pub fn retry_after(after: Duration, reason: impl fmt::Display) -> Self {
        Self::Retry {
            after: Some(after),
            reason: reason.to_string(),
        }
    }

    /// A permanent error, with few retries.
    pub fn fault(reason: impl fmt::Display) -> Self {
        Self::Fault {
            reason: reason.to_string(),
        }
    }

    /// A termination.
    pub fn term(reason: impl fmt::Display) -> Self {
        Self::Term {
            reason: reason.to_string(),
        }
    }
}

/// A wait: the copy that continues, and how this message ends once the copy is stored in the delay queue.
///
/// Only consumers of PUSH, TIMELINE and their redrives have the delay queue. Without it, or while it is full, the
/// consumer holds the message as for [`Disposition::Retry`], which spends an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// Delay of the copy.
    pub after: Duration,
    /// Number of the wait, from 1, greater than that of every earlier copy. The copy's message id ends in it, so a wait
    /// that is repeated after a crash stores no second copy. Without a number of its own, a handler takes
    /// [`Delivery::waits`] plus 1.
    pub number: u32,
    /// Body of the copy; `None`: the same as of this message.
    pub payload: Option<Bytes>,
    /// What the message waits for, for the log: lowercase, without secrets.
    pub reason: String,
    /// `None`: acknowledge this message. Otherwise terminate it with this reason: a part of it has failed for good.
    pub failed: Option<String>,
}

/// The disposition of a failed message: retry for a transient error, fault for a permanent error.
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

/// One delivery of a message.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Subject of the first publish.
    pub subject: Subject,
    /// Encoded message.
    pub payload: Bytes,
    /// Sequence of the first publish in its stream; for a copy from the delay queue, the copy's own.
    pub sequence: u64,
    /// Number of this attempt, from 1.
    pub attempt: u64,
    /// Maximum number of attempts.
    pub attempts_max: u64,
    /// Time of the first publish.
    pub published_at: Timestamp,
    /// The redrive, for a redriven message.
    pub redrive: Option<Redriven>,
    /// Messages pending in the consumer at the time of this delivery.
    pub pending_count: u64,
    pub(crate) headers: Option<HeaderMap>,
    /// The delay queue of the consumer, if it has one.
    pub(crate) delay_queue: Option<Arc<DelayQueue>>,
    /// The message's place among those that are handled concurrently.
    pub(crate) slot: Slot,
}

impl Delivery {
    /// A first delivery of a message without headers that comes from no consumer: for tests of handlers.
    pub fn without_consumer(subject: Subject, sequence: u64, payload: impl Into<Bytes>) -> Self {
        Self {
            subject,
            payload: payload.into(),
            sequence,
            attempt: 1,
            attempts_max: 1,
            published_at: Timestamp::default(),
            redrive: None,
            pending_count: 0,
            headers: None,
            delay_queue: None,
            slot: Slot::none(),
        }
    }

    /// Decodes the message. The error is the disposition of an undecodable message: terminate it.
    ///
    /// Adds the post to the span of the handler.
    pub fn decode<M: prost::Message + PostScoped + Default>(&self) -> Result<M, Disposition> {
        let message = M::decode(self.payload.clone());
        if let Some(post) = message.as_ref().ok().and_then(PostScoped::post_id) {
            tracing::Span::current().record("post_id", post);
        }
        message.map_err(|error| {
            Disposition::term(format_args!(
                "undecodable {} on {}: {error}",
                self.subject.message_type(),
                self.subject
            ))
        })
    }

    /// Message id of the publish; each redrive and each delayed copy has its own.
    pub fn id(&self) -> Option<&str> {
        Some(self.headers.as_ref()?.get(header::NATS_MESSAGE_ID)?.as_str())
    }

    /// W3C `traceparent` of the publisher.
    pub fn trace_parent(&self) -> Option<&str> {
        self.header(headers::TRACE_PARENT)
    }

    /// The message in the span of a batch; `None` if its trace isn't recorded.
    pub fn link(&self) -> Option<MessageLink> {
        MessageLink::new(self.headers.as_ref())
    }

    /// Value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        headers::get(self.headers.as_ref()?, name)
    }

    /// Number of the wait that made this copy; 0 if none did.
    pub fn waits(&self) -> u32 {
        self.header(headers::WAITS)
            .and_then(|number| number.parse().ok())
            .unwrap_or(0)
    }

    /// Whether the delay queue can take a [`Wait`] now. False on a server without message schedules (before 2.12), and
    /// while the delay queue is full.
    pub async fn can_wait(&self) -> bool {
        match &self.delay_queue {
            Some(delay_queue) => delay_queue.has_capacity().await,
            None => false,
        }
    }

    /// Ends that this message counts towards [`ConsumeOptions::in_flight_max`], so that the consumer pulls another one
    /// while the handler still waits for something slow. The handler must limit itself how many messages do so.
    pub fn release_slot(&self) {
        self.slot.release();
    }

    /// Whether this is the last attempt.
    pub fn is_last_attempt(&self) -> bool {
        self.attempt >= self.attempts_max
    }
}

/// Options of a consumer loop.
#[derive(Debug, Clone)]
pub struct ConsumeOptions {
    /// Maximum number of messages handled concurrently, not counting those whose handler has called
    /// [`Delivery::release_slot`]; 1 to 32,768. A message is requested only when it can be handled.
    pub in_flight_max: usize,
    /// Maximum number of messages per pull request; at least 1.
    pub batch_max: usize,
    /// While true, no message is pulled; running handlers continue. A closed channel ends the pause.
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
    /// Handles a consumer's messages until the shutdown, then drains: stops pulling, returns unhandled messages for
    /// immediate redelivery, and waits `drain_seconds` for running handlers.
    ///
    /// Continues after restarts of the server. Creates the consumer if it is missing; it then starts at the stream's
    /// first message. With [`TopologyMode::Verify`](crate::TopologyMode::Verify), waits until someone else has created
    /// it.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for options out of bounds; [`ErrorKind::Conflict`] when the consumer is missing and can't
    /// be created as specified.
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
    fn the_disposition_follows_the_error_class() {
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
