//! Publishing, with acknowledgements.

use std::time::Duration;

use async_nats::{HeaderMap, header};
use bytes::Bytes;
use tokio::time::Instant;
use tracing::{Instrument as _, Span};

use crate::error::{Error, ErrorKind, Result};
use crate::retry::RetryDelay;
use crate::{Mesh, Subject, headers, trace};

/// Between the attempts of one publish.
const RETRY: RetryDelay = RetryDelay {
    delay_ms_base: 50,
    delay_ms_max: 1_000,
};

/// What a message on its first way leaves free of the size that the server takes, bytes: on a later way it carries what it
/// was, in some 300 bytes of headers more, and it must get there as well.
pub(crate) const LATER_WAY_BYTES: usize = 1_024;

/// What the server answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The message's sequence in its stream; the first one's for a duplicate.
    pub sequence: u64,
    /// Whether a message with this id was there already: an earlier one, or an earlier attempt of this one whose
    /// answer was lost.
    pub duplicate: bool,
}

/// A message on its way out.
pub(crate) struct Outgoing {
    /// The subject on the wire.
    pub(crate) to: String,
    /// The headers beside those that [`Mesh::send`] adds: the id, and the span's context.
    pub(crate) headers: HeaderMap,
    pub(crate) id: Option<String>,
    pub(crate) body: Bytes,
    /// What to leave free of the size that the server takes, bytes.
    pub(crate) spare_bytes: usize,
    pub(crate) span: Span,
}

impl Mesh {
    /// Publishes a message and waits until the stream has it.
    ///
    /// Messages with the same `id` are stored once, within the stream's dedupe window. Only a message with an id is tried
    /// again when the server doesn't answer. The current span's context travels in the headers.
    ///
    /// At most `publish_in_flight_max` publishes wait for their answers at a time; more wait here.
    ///
    /// # Errors
    /// [`ErrorKind::Full`] when the stream is full, [`ErrorKind::TooLarge`] when less than 1,024 bytes would be left of what
    /// the server takes, or the stream takes less, [`ErrorKind::Unavailable`] when there was no answer or is no stream: then
    /// it is unknown whether the message was stored. [`ErrorKind::Invalid`] for a subject that is a family.
    pub async fn publish<M: prost::Message>(
        &self,
        subject: Subject,
        id: Option<&str>,
        body: &M,
    ) -> Result<Published> {
        self.publish_bytes(subject, id, body.encode_to_vec().into()).await
    }

    /// The same, for a message that tells of the work of several spans: its trace is that of the first, with links to the
    /// others.
    pub async fn publish_for<M: prost::Message>(
        &self,
        subject: Subject,
        id: Option<&str>,
        body: &M,
        spans: &[Span],
    ) -> Result<Published> {
        let span = trace::publish_span_for(subject, subject.as_str(), spans);
        self.publish_in(subject, id, body.encode_to_vec().into(), span)
            .await
    }

    /// The same, for a message that is encoded already.
    pub async fn publish_bytes(&self, subject: Subject, id: Option<&str>, body: Bytes) -> Result<Published> {
        let span = trace::publish_span(subject, subject.as_str());
        self.publish_in(subject, id, body, span).await
    }

    async fn publish_in(
        &self,
        subject: Subject,
        id: Option<&str>,
        body: Bytes,
        span: Span,
    ) -> Result<Published> {
        if subject.is_family() {
            let message = format!("publish to {subject}: not one subject");
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        self.send(Outgoing {
            to: subject.as_str().into(),
            headers: headers::typed(subject),
            id: id.map(Into::into),
            body,
            spare_bytes: LATER_WAY_BYTES,
            span,
        })
        .await
    }

    /// The longest that a publish of a message with an id takes, from the call to the moment that its last attempt is given
    /// up.
    pub fn publish_time_max(&self) -> Duration {
        let config = &self.inner.config;
        let attempt = config.publish_timeout() + answer_time_max(config.publish_timeout());
        config.publish_retry_max() + RETRY.ceiling(u64::MAX) + attempt
    }

    /// Publishes a message, within its span, until it is stored or the attempts are used up.
    pub(crate) async fn send(&self, mut message: Outgoing) -> Result<Published> {
        if let Some(id) = &message.id {
            message.headers.insert(header::NATS_MESSAGE_ID, id.as_str());
        }
        trace::inject(&message.span, &mut message.headers);
        let span = message.span.clone();
        let publish = async {
            let config = &self.inner.config;
            let first = Instant::now();
            let mut attempt = 1;
            loop {
                let error = match self.publish_once(&message).await {
                    Ok(published) => {
                        herald_failpoints::point!("published");
                        return Ok(published);
                    }
                    Err(error) => error,
                };
                let again = message.id.is_some()
                    && error.kind() == ErrorKind::Unavailable
                    && attempt < u64::from(config.publish_attempts_max)
                    && first.elapsed() < config.publish_retry_max();
                if !again {
                    trace::fail(&message.span, &error.to_string());
                    return Err(error);
                }
                tracing::debug!(subject = message.to, attempt, %error, "publish again");
                tokio::time::sleep(RETRY.draw(attempt)).await;
                attempt += 1;
            }
        };
        publish.instrument(span).await
    }

    async fn publish_once(&self, message: &Outgoing) -> Result<Published> {
        let connection = self.publishing();
        let timeout = self.inner.config.publish_timeout();
        let to = &message.to;
        // What is handed over while the connection is down waits in the client and goes out long after its caller has
        // given up.
        if !connection.is_up() && tokio::time::timeout(timeout, connection.up()).await.is_err() {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("publish to {to}: not connected"),
            ));
        }

        let size = headers::wire_bytes(&message.headers) + message.body.len();
        let size_max = connection.client.max_payload();
        if size.saturating_add(message.spare_bytes) > size_max {
            let spare = message.spare_bytes;
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "publish to {to}: {size} bytes, and the server takes {size_max}, of which {spare} are left free"
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
            // The answer went to the connection before this one.
            _ = epoch.changed() => {
                Err(Error::new(ErrorKind::Unavailable, format!("publish to {to}: the connection was lost")))
            }
            () = tokio::time::sleep(answer_time_max(timeout)) => {
                Err(Error::new(ErrorKind::Unavailable, format!("publish to {to}: too many wait already")))
            }
        }
    }
}

/// To wait for a turn and then for the answer.
fn answer_time_max(timeout: Duration) -> Duration {
    timeout.saturating_mul(2) + Duration::from_secs(1)
}
