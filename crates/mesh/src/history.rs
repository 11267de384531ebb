//! Going back in a stream.

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use futures::{Stream, StreamExt as _, stream};
use herald_model::time::Micros;

use crate::error::{Error, ErrorKind, Result};
use crate::publish::Outgoing;
use crate::read::found;
use crate::{Mesh, Published, RawMessage, Subject, trace};

impl Mesh {
    /// A stream's messages from one sequence to another, both included, those on subjects that pass the filter. Ends after
    /// the first error. What comes is what the stream has at that moment: it need not be as far as `to`.
    pub fn scan(
        &self,
        stream: &str,
        filter: Option<&str>,
        from: u64,
        to: u64,
    ) -> impl Stream<Item = Result<RawMessage>> + Send + use<> {
        let opening = open(self.clone(), stream.to_owned(), filter.map(Into::into), from, to);
        stream::once(opening).flat_map(|opened| match opened {
            Ok(messages) => messages.left_stream(),
            Err(error) => stream::iter([Err(error)]).right_stream(),
        })
    }

    /// The sequence of the first message that a stream stored at this moment or later; the one after its last when there is
    /// none. Some twenty reads.
    pub async fn sequence_since(&self, stream: &str, at: Micros) -> Result<u64> {
        let handle = self.stream(stream).await?;
        let info = handle.get_info().await;
        let state = info
            .map_err(|error| Error::unavailable(format_args!("read stream {stream}"), error))?
            .state;
        // All below `low` are older; none at `high` or above is.
        let (mut low, mut high) = (state.first_sequence.max(1), state.last_sequence + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            let next = handle.direct_get_next_for_subject(">", Some(middle)).await;
            match found(next, stream)? {
                Some(message) if message.sequence < high && message.published_at < at => {
                    low = message.sequence + 1;
                }
                // From here on there are only such ones, or none.
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// Publishes the payload of a message once more on its own subject, without an id and without its headers.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a subject that isn't the mesh's, else as [`Mesh::publish`].
    pub async fn republish(&self, message: &RawMessage) -> Result<Published> {
        let to = &message.subject;
        let subject = Subject::parse(to).ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!("republish to {to}: not a subject of the mesh"),
            )
        })?;
        self.send(Outgoing {
            to: to.clone(),
            headers: async_nats::HeaderMap::new(),
            id: None,
            body: message.payload.clone(),
            span: trace::publish_span(subject, to),
        })
        .await
    }

    /// Lets a consumer deliver nothing until then; its workers wait. Server 2.11 or later.
    pub async fn pause(&self, stream: &str, consumer: &str, until: Micros) -> Result<()> {
        let until = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(until.0) * 1_000);
        let until =
            until.map_err(|error| Error::with_source(ErrorKind::Invalid, "pause until then", error))?;
        let paused = self.stream(stream).await?.pause_consumer(consumer, until).await;
        paused.map(|_| ()).map_err(|error| {
            Error::unavailable(
                format_args!("pause consumer {consumer} of stream {stream}"),
                error,
            )
        })
    }

    /// Lets a paused consumer go on.
    pub async fn resume(&self, stream: &str, consumer: &str) -> Result<()> {
        let resumed = self.stream(stream).await?.resume_consumer(consumer).await;
        resumed.map(|_| ()).map_err(|error| {
            Error::unavailable(
                format_args!("resume consumer {consumer} of stream {stream}"),
                error,
            )
        })
    }
}

/// Reads on until the end that was asked for, or of what is there.
async fn open(
    mesh: Mesh,
    stream: String,
    filter: Option<String>,
    from: u64,
    to: u64,
) -> Result<impl Stream<Item = Result<RawMessage>> + Send> {
    let failed = {
        let stream = stream.clone();
        move |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::unavailable(format_args!("read the messages of stream {stream}"), error)
        }
    };
    let consumer = mesh
        .stream(&stream)
        .await?
        .create_consumer(OrderedConfig {
            filter_subject: filter.unwrap_or_default(),
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: from.max(1),
            },
            ..OrderedConfig::default()
        })
        .await
        .map_err(|error| failed(error.into()))?;
    let left = consumer.cached_info().num_pending;
    let messages = consumer.messages().await.map_err(|error| failed(error.into()))?;
    let more = left > 0 && from <= to;
    Ok(stream::unfold(
        (messages, more, failed),
        move |(mut messages, more, failed)| async move {
            if !more {
                return None;
            }
            let message = match messages.next().await? {
                Ok(message) => message,
                Err(error) => return Some((Err(failed(error.into())), (messages, false, failed))),
            };
            let Ok(info) = message.info() else {
                return Some((
                    Err(failed("a message without a place".into())),
                    (messages, false, failed),
                ));
            };
            let (sequence, pending) = (info.stream_sequence, info.pending);
            if sequence > to {
                return None;
            }
            let published_at =
                Micros(i64::try_from(info.published.unix_timestamp_nanos() / 1_000).unwrap_or(0));
            let message = message.message;
            let message = RawMessage {
                subject: message.subject.to_string(),
                sequence,
                payload: message.payload,
                published_at,
                headers: message.headers.unwrap_or_default(),
            };
            Some((Ok(message), (messages, pending > 0 && sequence < to, failed)))
        },
    ))
}
