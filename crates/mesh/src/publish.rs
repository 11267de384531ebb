//! Publishing, with acknowledgements.

use std::time::Duration;

use async_nats::{HeaderMap, header};
use bytes::Bytes;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::error::{Error, ErrorKind, Result};
use crate::retry::RetryDelay;
use crate::{Mesh, Subject, trace};

/// The header that names the Protobuf message.
const TYPE: &str = "Herald-Type";

/// Between the attempts of one publish.
const RETRY: RetryDelay = RetryDelay {
    delay_ms_base: 50,
    delay_ms_max: 1_000,
};

/// What the server answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The message's sequence in its stream; the first one's for a duplicate.
    pub sequence: u64,
    /// Whether a message with this id was there already: an earlier one, or an earlier attempt of this one whose
    /// answer was lost.
    pub duplicate: bool,
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
    /// [`ErrorKind::Full`] when the stream is full, [`ErrorKind::TooLarge`], [`ErrorKind::Unavailable`] when there was
    /// no answer or is no stream: then it is unknown whether the message was stored.
    pub async fn publish<M: prost::Message>(
        &self,
        subject: Subject,
        id: Option<&str>,
        body: &M,
    ) -> Result<Published> {
        self.publish_bytes(subject, id, body.encode_to_vec().into()).await
    }

    /// The same, for a message that is encoded already.
    pub async fn publish_bytes(&self, subject: Subject, id: Option<&str>, body: Bytes) -> Result<Published> {
        let span = trace::publish_span(subject);
        let publish = async {
            let config = &self.inner.config;
            let first = Instant::now();
            let mut attempt = 1;
            loop {
                let error = match self.publish_once(subject, id, body.clone(), &span).await {
                    Ok(published) => return Ok(published),
                    Err(error) => error,
                };
                let again = id.is_some()
                    && error.kind() == ErrorKind::Unavailable
                    && attempt < u64::from(config.publish_attempts_max)
                    && first.elapsed() < config.publish_retry_max();
                if !again {
                    trace::fail(&span, &error.to_string());
                    return Err(error);
                }
                tracing::debug!(%subject, attempt, %error, "publish again");
                tokio::time::sleep(RETRY.draw(attempt)).await;
                attempt += 1;
            }
        };
        publish.instrument(span.clone()).await
    }

    async fn publish_once(
        &self,
        subject: Subject,
        id: Option<&str>,
        body: Bytes,
        span: &tracing::Span,
    ) -> Result<Published> {
        let connection = self.publishing();
        let timeout = self.inner.config.publish_timeout();
        // What is handed over while the connection is down waits in the client and goes out long after its caller has
        // given up.
        if !connection.is_up() && tokio::time::timeout(timeout, connection.up()).await.is_err() {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("publish to {subject}: not connected"),
            ));
        }

        let mut headers = HeaderMap::new();
        headers.insert(TYPE, subject.message_type());
        if let Some(id) = id {
            headers.insert(header::NATS_MESSAGE_ID, id);
        }
        trace::inject(span, &mut headers);

        let mut epoch = connection.epoch();
        let acknowledged = async {
            let sent = connection
                .jetstream
                .publish_with_headers(subject.as_str(), headers, body)
                .await?;
            sent.await
        };
        tokio::select! {
            biased;
            result = acknowledged => match result {
                Ok(ack) => Ok(Published { sequence: ack.sequence, duplicate: ack.duplicate }),
                Err(error) => Err(Error::publish(subject, error)),
            },
            // The answer went to the connection before this one.
            _ = epoch.changed() => {
                Err(Error::new(ErrorKind::Unavailable, format!("publish to {subject}: the connection was lost")))
            }
            () = tokio::time::sleep(timeout.saturating_mul(2) + Duration::from_secs(1)) => {
                Err(Error::new(ErrorKind::Unavailable, format!("publish to {subject}: too many wait already")))
            }
        }
    }
}
