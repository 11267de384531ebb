//! Reading the state: messages by sequence, lag, and the live subject.

use std::time::Duration;

use async_nats::jetstream::consumer;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{
    DirectGetError, DirectGetErrorKind, RawMessageError, RawMessageErrorKind, Stream,
};
use async_nats::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::{try_join, try_join_all};
use herald_model::time::Timestamp;

use crate::error::{Error, ErrorKind, Result};
use crate::topology::{ConsumerSpec, StreamSpec, Topology};
use crate::{Mesh, OriginalMessage, Redriven, Subject, headers};

/// What the server adds to a message that it reads from a stream.
const ADDED: [&str; 6] = [
    "Nats-Stream",
    "Nats-Subject",
    "Nats-Sequence",
    "Nats-Time-Stamp",
    "Nats-Num-Pending",
    "Nats-Last-Sequence",
];

/// A message as its stream holds it.
#[derive(Debug, Clone)]
pub struct RawMessage {
    /// Where it was published; not only the mesh's own subjects.
    pub subject: String,
    /// Its sequence.
    pub sequence: u64,
    /// The encoded message.
    pub payload: Bytes,
    /// When the stream stored it.
    pub published_at: Timestamp,
    pub(crate) headers: HeaderMap,
}

impl RawMessage {
    /// The id it was published with.
    pub fn id(&self) -> Option<&str> {
        Some(self.headers.get(header::NATS_MESSAGE_ID)?.as_str())
    }

    /// The trace that its publisher was in, as W3C writes it.
    pub fn trace_parent(&self) -> Option<&str> {
        self.header(headers::TRACE_PARENT)
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        headers::get(&self.headers, name)
    }

    /// All headers it was published with; one with several values comes several times.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers
            .iter()
            .filter(|(name, _)| !ADDED.contains(&name.as_ref()))
            .flat_map(|(name, values)| values.iter().map(|value| (name.as_ref(), value.as_str())))
    }

    /// The Protobuf message that it says it is.
    pub fn message_type(&self) -> Option<&str> {
        self.header(headers::TYPE)
    }

    /// What it was the first time, if this isn't it; the error is why nobody can make sense of it.
    pub fn origin(&self) -> Result<OriginalMessage, String> {
        OriginalMessage::read(
            &self.subject,
            self.sequence,
            self.published_at,
            Some(&self.headers),
        )
    }

    /// The rest of the trace context that its publisher was in.
    pub fn trace_state(&self) -> Option<&str> {
        self.header(headers::TRACE_STATE)
    }

    /// What it is and where it was: its own subject and sequence, but for a redriven message those of its first time, and for
    /// one that waits in LATER the subject it comes back to.
    pub fn original(&self) -> Option<(Subject, u64)> {
        if self.subject.starts_with(headers::LATER_SUBJECTS) {
            return Some((Subject::parse(self.header(headers::SUBJECT)?)?, self.sequence));
        }
        let origin = self.origin().ok()?;
        Some((origin.subject, origin.sequence))
    }

    /// The redrive that the message comes from, if it does and says so.
    pub fn redriven(&self) -> Option<Redriven> {
        Redriven::parse(self.header(headers::REDRIVE)?)
    }

    /// Decodes the message.
    pub fn decode<M: prost::Message + Default>(&self) -> Result<M> {
        M::decode(self.payload.clone()).map_err(|error| {
            Error::with_source(
                ErrorKind::Rejected,
                format_args!("message {} on {}", self.sequence, self.subject),
                error,
            )
        })
    }
}

impl From<StreamMessage> for RawMessage {
    fn from(message: StreamMessage) -> Self {
        Self {
            subject: message.subject.to_string(),
            sequence: message.sequence,
            payload: message.payload,
            published_at: Timestamp(i64::try_from(message.time.unix_timestamp_nanos() / 1_000).unwrap_or(0)),
            headers: message.headers,
        }
    }
}

/// The state of one stream and its consumers.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamLag {
    /// Its name.
    pub stream: String,
    /// Messages in it.
    pub message_count: u64,
    /// Bytes in it.
    pub byte_count: u64,
    /// Bytes it may hold.
    pub byte_count_max: u64,
    /// Its first sequence still there.
    pub first_sequence: u64,
    /// Its last sequence.
    pub last_sequence: u64,
    /// Its consumers, in the topology's order.
    pub consumers: Vec<ConsumerLag>,
}

/// The state of one consumer.
#[derive(Debug, Clone, PartialEq)]
pub struct ConsumerLag {
    /// Its name.
    pub consumer: String,
    /// Messages not delivered to any worker yet.
    pub pending_count: u64,
    /// Messages delivered and not acknowledged yet.
    pub ack_pending_count: u64,
    /// Of these, delivered more than once.
    pub redelivered_count: u64,
    /// Pulls that wait for a message.
    pub waiting_pull_count: u64,
    /// The age of the oldest message not acknowledged; zero when there is none.
    pub oldest_age: Duration,
    /// The stream sequence up to which all is acknowledged, or given up.
    pub ack_floor: u64,
    /// The stream sequence of the newest message that was delivered to any worker.
    pub delivered_sequence: u64,
    /// How long it still delivers nothing because somebody has paused it; zero when nobody has.
    pub paused_for: Duration,
    /// Deliveries made so far, redeliveries included.
    pub delivered_count: u64,
    /// Deliveries made up to the one at the floor: the difference of two readings, by the time between them, is the
    /// rate of acknowledgements.
    pub acknowledged_count: u64,
}

impl ConsumerLag {
    /// Messages not acknowledged: what is left to do.
    pub fn outstanding_count(&self) -> u64 {
        self.pending_count + self.ack_pending_count
    }
}

impl Mesh {
    /// The message of this sequence; `None` when there is none, or none any more.
    ///
    /// Any replica of the stream may answer, but only its leader is believed that there is none: the others learn of a
    /// message a moment after its publisher.
    pub async fn message(&self, stream: &str, sequence: u64) -> Result<Option<RawMessage>> {
        // Sequences begin at 1, and a server that is asked for another one refuses it.
        if sequence == 0 {
            return Ok(None);
        }
        let handle = self.stream(stream).await?;
        match found(handle.direct_get(sequence).await, stream)? {
            Some(message) => Ok(Some(message)),
            None => found_by_leader(handle.get_raw_message(sequence).await, stream),
        }
    }

    /// The stream sequence up to which a consumer has acknowledged all that it reads; 0 before the first.
    pub async fn ack_floor(&self, stream: &str, consumer: &str) -> Result<u64> {
        Ok(self
            .consumer_info(stream, consumer)
            .await?
            .ack_floor
            .stream_sequence)
    }

    /// Messages that a consumer has not delivered to any worker yet.
    pub async fn pending(&self, stream: &str, consumer: &str) -> Result<u64> {
        Ok(self.consumer_info(stream, consumer).await?.num_pending)
    }

    /// The state of all streams and consumers of a topology. Each is read at a slightly different moment, and a message
    /// that was acknowledged to its publisher may count as pending a moment later only.
    pub async fn lag(&self, topology: &Topology) -> Result<Vec<StreamLag>> {
        try_join_all(
            topology
                .streams
                .iter()
                .map(|stream| self.stream_lag(stream, topology)),
        )
        .await
    }

    /// Publishes to the gateways that have watchers. Nobody need be there, nobody acknowledges.
    pub async fn publish_live(&self, body: Bytes) -> Result<()> {
        let sent = self
            .publishing()
            .client
            .publish(Subject::LiveTimeline.as_str(), body)
            .await;
        sent.map_err(|error| {
            let kind = match error.kind() {
                async_nats::client::PublishErrorKind::MaxPayloadExceeded => ErrorKind::TooLarge,
                _ => ErrorKind::Unavailable,
            };
            Error::with_source(kind, "publish live", error)
        })
    }

    /// What is published live from now on. Messages are lost while the connection is down, and when the reader falls
    /// behind by 65,536 of them.
    pub async fn subscribe_live(&self) -> Result<impl futures::Stream<Item = Bytes> + Send + Unpin + use<>> {
        let connection = self.consuming();
        let messages = connection
            .client
            .subscribe(Subject::LiveTimeline.as_str())
            .await
            .map_err(|error| Error::unavailable("subscribe live", error))?;
        connection.round_trip().await?;
        Ok(messages.map(|message| message.payload))
    }

    async fn stream_lag(&self, spec: &StreamSpec, topology: &Topology) -> Result<StreamLag> {
        let handle = self.stream(&spec.name).await?;
        let info = async {
            handle
                .get_info()
                .await
                .map_err(|error| Error::unavailable(format_args!("read stream {}", spec.name), error))
        };
        let consumers = try_join_all(
            topology
                .consumers
                .iter()
                .filter(|consumer| consumer.stream == spec.name)
                .map(|consumer| self.consumer_lag(&handle, consumer)),
        );
        let (info, consumers) = try_join(info, consumers).await?;
        Ok(StreamLag {
            stream: spec.name.clone(),
            message_count: info.state.messages,
            byte_count: info.state.bytes,
            byte_count_max: u64::try_from(info.config.max_bytes).unwrap_or(spec.limits.bytes_max),
            first_sequence: info.state.first_sequence,
            last_sequence: info.state.last_sequence,
            consumers,
        })
    }

    async fn consumer_lag(&self, stream: &Stream<()>, spec: &ConsumerSpec) -> Result<ConsumerLag> {
        let info = self.consumer_info(&spec.stream, &spec.name).await?;
        let mut lag = ConsumerLag {
            consumer: spec.name.clone(),
            pending_count: info.num_pending,
            ack_pending_count: info.num_ack_pending as u64,
            redelivered_count: info.num_redelivered as u64,
            waiting_pull_count: info.num_waiting as u64,
            oldest_age: Duration::ZERO,
            ack_floor: info.ack_floor.stream_sequence,
            delivered_sequence: info.delivered.stream_sequence,
            paused_for: if info.paused {
                info.pause_remaining.unwrap_or_default()
            } else {
                Duration::ZERO
            },
            delivered_count: info.delivered.consumer_sequence,
            acknowledged_count: info.ack_floor.consumer_sequence,
        };
        if lag.outstanding_count() > 0 {
            let filter = spec.filter.as_deref().unwrap_or(">");
            let oldest = stream
                .direct_get_next_for_subject(filter, Some(lag.ack_floor + 1))
                .await;
            if let Some(oldest) = found(oldest, &spec.stream)? {
                lag.oldest_age = Timestamp::now().since(oldest.published_at);
            }
        }
        Ok(lag)
    }

    async fn consumer_info(&self, stream: &str, consumer: &str) -> Result<consumer::Info> {
        self.stream(stream)
            .await?
            .consumer_info(consumer)
            .await
            .map_err(|error| {
                Error::unavailable(format_args!("read consumer {consumer} of stream {stream}"), error)
            })
    }

    pub(crate) async fn stream(&self, stream: &str) -> Result<Stream<()>> {
        self.publishing()
            .jetstream
            .get_stream_no_info(stream)
            .await
            .map_err(|error| Error::with_source(ErrorKind::Invalid, format_args!("stream {stream:?}"), error))
    }
}

/// A message that the stream's leader was asked for, `None` where there is none.
pub(crate) fn found_by_leader(
    result: Result<StreamMessage, RawMessageError>,
    stream: &str,
) -> Result<Option<RawMessage>> {
    match result {
        Ok(message) => Ok(Some(message.into())),
        Err(error) => match error.kind() {
            RawMessageErrorKind::NoMessageFound => Ok(None),
            _ => Err(Error::unavailable(
                format_args!("read a message of stream {stream}"),
                error,
            )),
        },
    }
}

/// A message that was read, `None` where there is none.
pub(crate) fn found(
    result: Result<StreamMessage, DirectGetError>,
    stream: &str,
) -> Result<Option<RawMessage>> {
    match result {
        Ok(message) => Ok(Some(message.into())),
        Err(error) => match error.kind() {
            DirectGetErrorKind::NotFound | DirectGetErrorKind::ErrorResponse(StatusCode::NOT_FOUND, _) => {
                Ok(None)
            }
            _ => Err(Error::unavailable(
                format_args!("read a message of stream {stream}"),
                error,
            )),
        },
    }
}
