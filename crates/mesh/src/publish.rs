//! Publishes messages and waits for their acknowledgements.

use std::time::Duration;

use async_nats::{HeaderMap, header};
use bytes::Bytes;
use herald_model::PostScoped;
use tokio::time::Instant;
use tracing::{Instrument as _, Span};

use crate::error::{Error, ErrorKind, Result};
use crate::retry::RetryDelay;
use crate::{Mesh, Subject, headers, hops, trace};

/// Delay between the attempts of one publish.
const RETRY: RetryDelay = RetryDelay {
    delay_ms_base: 50,
    delay_ms_max: 1_000,
};

/// Time in which a message keeps its id while the leader answers that the id is in process, before the message gets
/// another id. An id that is really in process is decided in less.
const ID_IN_PROCESS_MAX: Duration = Duration::from_secs(1);

/// Bytes of the server's maximum message size that a publish leaves free. A redriven or delayed copy of the message has
/// about 300 bytes of headers more, and must fit too.
const RESERVED_BYTES: usize = 1_024;

/// Acknowledgement of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Sequence in the stream; for a duplicate, the sequence of the first message with this id.
    pub sequence: u64,
    /// Whether the stream had a message with this id: an earlier message, or an earlier attempt whose acknowledgement
    /// was lost.
    pub duplicate: bool,
}

/// A message to publish.
pub(crate) struct Outgoing {
    /// Subject.
    pub(crate) to: String,
    /// Headers; [`Mesh::send`] adds the message id and the trace context.
    pub(crate) headers: HeaderMap,
    pub(crate) id: Option<String>,
    /// Whether a second copy of the message changes nothing, so that it may be published under another id.
    pub(crate) repeatable: bool,
    pub(crate) body: Bytes,
    /// Bytes of the server's maximum message size to leave free.
    pub(crate) reserved_bytes: usize,
    pub(crate) span: Span,
    /// Whether the sequence of the message is the id of a post.
    pub(crate) is_post: bool,
}

impl Outgoing {
    /// Publishes the message under another id from now on, the same one for every caller.
    fn use_second_id(&mut self) {
        if let Some(id) = &self.id {
            self.headers
                .insert(header::NATS_MESSAGE_ID, format!("{id}/retry").as_str());
        }
    }
}

impl Mesh {
    /// Publishes a message and waits until the stream has stored it.
    ///
    /// Within the stream's dedupe window, messages with the same `id` are stored once. Only a publish with an id is
    /// retried when the server doesn't answer. The headers carry the current span's trace context.
    ///
    /// At most `publish_in_flight_max` publishes are in flight; further calls wait.
    ///
    /// After a partition the stream's leader can hold an id as "in process" until the end of the dedupe window although
    /// the message was never stored. A message that may be handled twice ([`Subject::is_repeatable`]) is published as
    /// `{id}/retry` then; any other message stays [`ErrorKind::Unavailable`] until the leader forgets the id.
    ///
    /// # Errors
    /// [`ErrorKind::Full`] when the stream is full. [`ErrorKind::TooLarge`] when the message exceeds the stream's
    /// limit, or the server's limit minus 1,024 bytes. [`ErrorKind::Unavailable`] when the server didn't answer or the
    /// stream doesn't exist: the message may have been stored. [`ErrorKind::Invalid`] for a wildcard subject.
    pub async fn publish<M: prost::Message + PostScoped>(
        &self,
        subject: Subject,
        id: Option<&str>,
        body: &M,
    ) -> Result<Published> {
        let span = trace::publish_span(self.role, subject, subject.as_str());
        if let Some(post) = body.post_id() {
            span.record("post_id", post);
        }
        self.publish_in_span(subject, id, body.encode_to_vec().into(), span)
            .await
    }

    /// Publishes as [`Mesh::publish`] does, for a message that belongs to several spans: the first is the parent, the
    /// others are linked.
    pub async fn publish_with_links<M: prost::Message + PostScoped>(
        &self,
        subject: Subject,
        id: Option<&str>,
        body: &M,
        spans: &[Span],
    ) -> Result<Published> {
        let span = trace::publish_span_for(self.role, subject, subject.as_str(), spans);
        if let Some(post) = body.post_id() {
            span.record("post_id", post);
        }
        self.publish_in_span(subject, id, body.encode_to_vec().into(), span)
            .await
    }

    /// Publishes an encoded message as [`Mesh::publish`] does.
    pub async fn publish_bytes(&self, subject: Subject, id: Option<&str>, body: Bytes) -> Result<Published> {
        let span = trace::publish_span(self.role, subject, subject.as_str());
        self.publish_in_span(subject, id, body, span).await
    }

    async fn publish_in_span(
        &self,
        subject: Subject,
        id: Option<&str>,
        body: Bytes,
        span: Span,
    ) -> Result<Published> {
        if subject.is_wildcard() {
            let message = format!("publish to {subject}: wildcard subject");
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        self.send(Outgoing {
            to: subject.as_str().into(),
            headers: headers::with_type(subject),
            id: id.map(Into::into),
            repeatable: subject.is_repeatable(),
            body,
            reserved_bytes: RESERVED_BYTES,
            span,
            is_post: matches!(subject, Subject::PostCreated(_)),
        })
        .await
    }

    /// Maximum duration of a publish with an id, from the call to the timeout of its last attempt.
    pub fn publish_time_max(&self) -> Duration {
        let config = &self.inner.config;
        let attempt = config.publish_timeout() + ack_wait_max(config.publish_timeout());
        config.publish_retry_max() + RETRY.ceiling(u64::MAX) + attempt
    }

    /// Publishes a message within its span, with retries.
    pub(crate) async fn send(&self, mut message: Outgoing) -> Result<Published> {
        if let Some(id) = &message.id {
            message.headers.insert(header::NATS_MESSAGE_ID, id.as_str());
        }
        trace::inject(&message.span, &mut message.headers);
        message
            .span
            .record("messaging.message.body.size", message.body.len());
        if self.broker_hops && trace::is_sampled(&message.headers) {
            message.headers.insert(headers::TRACE_DESTINATION, hops::SUBJECT);
        }
        let (to, started) = (message.to.clone(), Instant::now());
        let span = message.span.clone();
        let publish = async {
            let config = &self.inner.config;
            let first = Instant::now();
            let mut attempt = 1;
            let mut in_process_since = None;
            loop {
                let error = match self.publish_once(&message).await {
                    Ok(published) => {
                        herald_failpoints::point!("published");
                        if message.is_post {
                            message.span.record("post_id", published.sequence);
                        }
                        return Ok(published);
                    }
                    Err(error) => error,
                };
                let retry = message.id.is_some()
                    && error.kind() == ErrorKind::Unavailable
                    && attempt < u64::from(config.publish_attempts_max)
                    && first.elapsed() < config.publish_retry_max();
                if !retry {
                    trace::set_error(&message.span, &error.to_string());
                    return Err(error);
                }
                tracing::debug!(subject = message.to, attempt, %error, "publish will be retried");
                if message.repeatable && error.is_id_in_process() {
                    let since = *in_process_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > ID_IN_PROCESS_MAX {
                        message.use_second_id();
                    }
                }
                tokio::time::sleep(RETRY.random_delay(attempt)).await;
                attempt += 1;
            }
        };
        let published = publish.instrument(span).await;
        let metrics = &self.inner.metrics;
        metrics.record_publish(&to, published.as_ref(), started.elapsed());
        published
    }

    async fn publish_once(&self, message: &Outgoing) -> Result<Published> {
        let connection = self.publishing();
        let timeout = self.inner.config.publish_timeout();
        let to = &message.to;
        // The client buffers messages while the connection is down, and would send this one long after the caller's
        // timeout.
        if !connection.is_up()
            && tokio::time::timeout(timeout, connection.wait_until_up())
                .await
                .is_err()
        {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("publish to {to}: not connected"),
            ));
        }

        let size = headers::wire_bytes(&message.headers) + message.body.len();
        let size_max = connection.client.max_payload();
        if size.saturating_add(message.reserved_bytes) > size_max {
            let reserved = message.reserved_bytes;
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "publish to {to}: {size} bytes exceed the server's max_payload of {size_max}, of which {reserved} \
                     are reserved"
                ),
            ));
        }

        let mut epoch = connection.epoch();
        let acknowledged = async {
            let sent = connection
                .jetstream
                .publish_with_headers(to.clone(), message.headers.clone(), message.body.clone())
                .await?;
            sent.await
        };
        tokio::select! {
            biased;
            result = acknowledged => match result {
                Ok(ack) => Ok(Published { sequence: ack.sequence, duplicate: ack.duplicate }),
                Err(error) => Err(Error::publish(to, error)),
            },
            // After a reconnect, the acknowledgement of this attempt can't arrive.
            _ = epoch.changed() => {
                Err(Error::new(ErrorKind::Unavailable, format!("publish to {to}: connection lost")))
            }
            () = tokio::time::sleep(ack_wait_max(timeout)) => {
                let message = format!("publish to {to}: too many publishes in flight");
                Err(Error::new(ErrorKind::Unavailable, message))
            }
        }
    }
}

/// Maximum time to wait for a free slot in flight and then for the acknowledgement.
fn ack_wait_max(timeout: Duration) -> Duration {
    timeout.saturating_mul(2) + Duration::from_secs(1)
}
