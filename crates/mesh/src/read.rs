//! Reads messages by sequence and the lag of consumers, and publishes and subscribes live messages.

use std::time::Duration;

use async_nats::jetstream::consumer;
use async_nats::jetstream::context::{ConsumerInfoError, ConsumerInfoErrorKind};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{
    self, DirectGetError, DirectGetErrorKind, RawMessageError, RawMessageErrorKind, Stream,
};
use async_nats::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::{try_join, try_join_all};
use herald_model::time::Timestamp;

use crate::error::{Error, ErrorKind, Result};
use crate::last::{ANSWERED_WITHIN, from_server};
use crate::topology::{ConsumerSpec, StreamSpec, Topology};
use crate::{Mesh, OriginalMessage, Redriven, Subject, headers, trace};

/// Headers that the server adds to a message read from a stream.
const SERVER_HEADERS: [&str; 6] = [
    "Nats-Stream",
    "Nats-Subject",
    "Nats-Sequence",
    "Nats-Time-Stamp",
    "Nats-Num-Pending",
    "Nats-Last-Sequence",
];

/// A message read from a stream.
#[derive(Debug, Clone)]
pub struct RawMessage {
    /// Subject; can be one that is not a [`Subject`] of the mesh.
    pub subject: String,
    /// Sequence in the stream.
    pub sequence: u64,
    /// Encoded message.
    pub payload: Bytes,
    /// When the stream stored the message.
    pub published_at: Timestamp,
    pub(crate) headers: HeaderMap,
}

impl RawMessage {
    /// Message id of the publish.
    pub fn id(&self) -> Option<&str> {
        Some(self.headers.get(header::NATS_MESSAGE_ID)?.as_str())
    }

    /// W3C `traceparent` of the publisher.
    pub fn trace_parent(&self) -> Option<&str> {
        self.header(headers::TRACE_PARENT)
    }

    /// Value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        headers::get(&self.headers, name)
    }

    /// Headers of the publish; a header with several values is repeated.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers
            .iter()
            .filter(|(name, _)| !SERVER_HEADERS.contains(&name.as_ref()))
            .flat_map(|(name, values)| values.iter().map(|value| (name.as_ref(), value.as_str())))
    }

    /// Protobuf type of the message, from its header.
    pub fn message_type(&self) -> Option<&str> {
        self.header(headers::TYPE)
    }

    /// Original subject and sequence of a redriven or delayed copy; for other messages, their own.
    ///
    /// # Errors
    /// The reason why the subject is unknown or the headers are malformed.
    pub fn origin(&self) -> Result<OriginalMessage, String> {
        OriginalMessage::parse(
            &self.subject,
            self.sequence,
            self.published_at,
            Some(&self.headers),
        )
    }

    /// W3C `tracestate` of the publisher.
    pub fn trace_state(&self) -> Option<&str> {
        self.header(headers::TRACE_STATE)
    }

    /// Links the current span to the publish of this message.
    pub fn link_current_span(&self) {
        trace::add_link(&tracing::Span::current(), &trace::extract(&self.headers));
    }

    /// Subject and sequence as [`RawMessage::origin`] returns them; for a message in the delay queue, the subject to
    /// which it returns. `None` when the subject or the headers are malformed.
    pub fn original(&self) -> Option<(Subject, u64)> {
        if self.subject.starts_with(headers::LATER_SUBJECTS) {
            return Some((Subject::parse(self.header(headers::SUBJECT)?)?, self.sequence));
        }
        let origin = self.origin().ok()?;
        Some((origin.subject, origin.sequence))
    }

    /// The redrive of a redriven message, from its header.
    pub fn redriven(&self) -> Option<Redriven> {
        Redriven::parse(self.header(headers::REDRIVE)?)
    }

    /// Decodes the message.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] for an undecodable payload.
    pub fn decode<M: prost::Message + Default>(&self) -> Result<M> {
        M::decode(self.payload.clone()).map_err(|error| {
            Error::with_source(
                ErrorKind::Rejected,
                format_args!("decode message {} on {}", self.sequence, self.subject),
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
            published_at: from_server(message.time),
            headers: message.headers,
        }
    }
}

/// State of one stream and its consumers.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamLag {
    /// Stream name.
    pub stream: String,
    /// Messages in the stream.
    pub message_count: u64,
    /// Bytes in the stream.
    pub byte_count: u64,
    /// Capacity of the stream, bytes.
    pub byte_count_max: u64,
    /// First sequence that is still in the stream.
    pub first_sequence: u64,
    /// Last sequence of the stream.
    pub last_sequence: u64,
    /// Consumers, in the topology's order.
    pub consumers: Vec<ConsumerLag>,
}

/// State of one consumer.
#[derive(Debug, Clone, PartialEq)]
pub struct ConsumerLag {
    /// Consumer name.
    pub consumer: String,
    /// Messages that were not delivered to a worker yet.
    pub pending_count: u64,
    /// Messages delivered and not acknowledged yet.
    pub ack_pending_count: u64,
    /// Those of `ack_pending_count` that were delivered more than once.
    pub redelivered_count: u64,
    /// Pull requests that wait for a message.
    pub waiting_pull_count: u64,
    /// Age of the oldest unacknowledged message; zero without one.
    pub oldest_age: Duration,
    /// Stream sequence up to which all messages are acknowledged or terminated.
    pub ack_floor: u64,
    /// Stream sequence of the newest message delivered to a worker.
    pub delivered_sequence: u64,
    /// Remaining time of a pause; zero when the consumer is not paused.
    pub paused_for: Duration,
    /// Deliveries so far, redeliveries included.
    pub delivered_count: u64,
    /// Deliveries up to the acknowledgement floor. The difference of two readings divided by the time between them is
    /// the acknowledgement rate.
    pub acknowledged_count: u64,
    /// When a message was last delivered to a worker, by the server's clock. `None` before the first, and after a
    /// restart of the server.
    pub delivered_at: Option<Timestamp>,
}

impl ConsumerLag {
    /// Messages not acknowledged yet.
    pub fn outstanding_count(&self) -> u64 {
        self.pending_count + self.ack_pending_count
    }
}

impl Mesh {
    /// Reads the message with this sequence; `None` when the stream doesn't have it, or no longer.
    ///
    /// Any replica may return the message. `None` is confirmed by the leader, because other replicas store a message
    /// after its publish is acknowledged.
    pub async fn message(&self, stream: &str, sequence: u64) -> Result<Option<RawMessage>> {
        // Sequences start at 1; the server refuses a request for 0.
        if sequence == 0 {
            return Ok(None);
        }
        let handle = self.stream(stream).await?;
        match message_if_found(handle.direct_get(sequence).await, stream)? {
            Some(message) => Ok(Some(message)),
            None => leader_message_if_found(handle.get_raw_message(sequence).await, stream),
        }
    }

    /// Stream sequence up to which a consumer has acknowledged all messages; 0 before the first.
    pub async fn ack_floor(&self, stream: &str, consumer: &str) -> Result<u64> {
        Ok(self
            .consumer_info(stream, consumer)
            .await?
            .ack_floor
            .stream_sequence)
    }

    /// Number of pulls that wait for messages of a consumer; `None` if the consumer doesn't exist.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when no server answers.
    pub async fn waiting_pulls(&self, spec: &ConsumerSpec) -> Result<Option<u64>> {
        let info = self.stream(&spec.stream).await?.consumer_info(&spec.name).await;
        match info {
            Ok(info) => Ok(Some(info.num_waiting as u64)),
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(&spec.stream, &spec.name, error)),
        }
    }

    /// Number of messages that a consumer has not delivered to a worker yet.
    pub async fn pending(&self, stream: &str, consumer: &str) -> Result<u64> {
        Ok(self.consumer_info(stream, consumer).await?.num_pending)
    }

    /// Reads the state of all streams and consumers of a topology. The readings are not one snapshot, and a message
    /// counts as pending only some time after its publish was acknowledged.
    pub async fn lag(&self, topology: &Topology) -> Result<Vec<StreamLag>> {
        try_join_all(
            topology
                .streams
                .iter()
                .map(|stream| self.stream_lag(stream, topology)),
        )
        .await
    }

    /// Reads the state of one consumer; `None` when the server has no such consumer, or no such stream.
    ///
    /// The leader of the consumer answers: other replicas would report numbers of the past.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when no server answers, or the consumer has no leader.
    pub async fn lag_of(&self, spec: &ConsumerSpec) -> Result<Option<ConsumerLag>> {
        let handle = self.stream(&spec.stream).await?;
        match handle.consumer_info(&spec.name).await {
            Ok(info) if !is_led(&info) => Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "read consumer {} of stream {}: the answering server is not its leader, or not in contact with a \
                     majority of its replicas",
                    spec.name, spec.stream
                ),
            )),
            Ok(info) => self.describe_lag(&handle, spec, info).await.map(Some),
            Err(error) => match error.kind() {
                ConsumerInfoErrorKind::NotFound | ConsumerInfoErrorKind::StreamNotFound => Ok(None),
                _ => Err(unreadable(&spec.stream, &spec.name, error)),
            },
        }
    }

    /// Publishes a live message to all subscribed gateways: core NATS, at most once, not acknowledged.
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

    /// Subscribes to live messages. Messages are lost while the connection is down and when the reader lags by 65,536
    /// messages.
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

    /// Reads the state of one stream, without its consumers.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when no server answers, or the stream has no leader: it takes no messages then.
    pub async fn stream_state(&self, spec: &StreamSpec) -> Result<StreamLag> {
        let info = self.stream_info(&self.stream(&spec.name).await?, spec).await?;
        if info
            .cluster
            .as_ref()
            .is_some_and(|cluster| cluster.leader.is_none())
        {
            let message = format!("read stream {}: it has no leader", spec.name);
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        Ok(to_lag(spec, &info, Vec::new()))
    }

    async fn stream_info(&self, handle: &Stream<()>, spec: &StreamSpec) -> Result<stream::Info> {
        handle
            .get_info()
            .await
            .map_err(|error| Error::unavailable(format_args!("read stream {}", spec.name), error))
    }

    async fn stream_lag(&self, spec: &StreamSpec, topology: &Topology) -> Result<StreamLag> {
        let handle = self.stream(&spec.name).await?;
        let info = self.stream_info(&handle, spec);
        let consumers = try_join_all(
            topology
                .consumers
                .iter()
                .filter(|consumer| consumer.stream == spec.name)
                .map(|consumer| self.consumer_lag(&handle, consumer)),
        );
        let (info, consumers) = try_join(info, consumers).await?;
        Ok(to_lag(spec, &info, consumers))
    }

    async fn consumer_lag(&self, stream: &Stream<()>, spec: &ConsumerSpec) -> Result<ConsumerLag> {
        let info = self.consumer_info(&spec.stream, &spec.name).await?;
        self.describe_lag(stream, spec, info).await
    }

    async fn describe_lag(
        &self,
        stream: &Stream<()>,
        spec: &ConsumerSpec,
        info: consumer::Info,
    ) -> Result<ConsumerLag> {
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
            delivered_at: info.delivered.last_active.map(from_server),
        };
        if lag.outstanding_count() > 0 {
            let filter = spec.filter.as_deref().unwrap_or(">");
            let oldest = stream
                .direct_get_next_for_subject(filter, Some(lag.ack_floor + 1))
                .await;
            if let Some(oldest) = message_if_found(oldest, &spec.stream)? {
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
            .map_err(|error| unreadable(stream, consumer, error))
    }

    /// Bytes in a stream, and its limit; `None` for a stream without a limit.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the stream doesn't exist or no server answers.
    pub async fn stream_bytes(&self, stream: &str) -> Result<(u64, Option<u64>)> {
        let info = self.stream(stream).await?.get_info().await;
        let info = info.map_err(|error| Error::unavailable(format_args!("read stream {stream}"), error))?;
        Ok((info.state.bytes, u64::try_from(info.config.max_bytes).ok()))
    }

    pub(crate) async fn stream(&self, stream: &str) -> Result<Stream<()>> {
        self.publishing()
            .jetstream
            .get_stream_no_info(stream)
            .await
            .map_err(|error| Error::with_source(ErrorKind::Invalid, format_args!("stream {stream:?}"), error))
    }
}

fn to_lag(spec: &StreamSpec, info: &stream::Info, consumers: Vec<ConsumerLag>) -> StreamLag {
    StreamLag {
        stream: spec.name.clone(),
        message_count: info.state.messages,
        byte_count: info.state.bytes,
        byte_count_max: u64::try_from(info.config.max_bytes).unwrap_or(spec.limits.bytes_max),
        first_sequence: info.state.first_sequence,
        last_sequence: info.state.last_sequence,
        consumers,
    }
}

/// Whether the answer about a consumer is that of its leader, and a majority of the replicas was heard of.
fn is_led(info: &consumer::Info) -> bool {
    let Some(cluster) = &info.cluster else {
        return true;
    };
    let heard = cluster
        .replicas
        .iter()
        .filter(|replica| !replica.offline && replica.active < ANSWERED_WITHIN);
    // The leader lists all replicas but itself.
    let leader = cluster.leader.as_deref().unwrap_or_default();
    let is_leader = !leader.is_empty() && cluster.replicas.iter().all(|one| one.name != leader);
    is_leader && heard.count() + 1 > cluster.replicas.len().div_ceil(2)
}

fn unreadable(stream: &str, consumer: &str, error: ConsumerInfoError) -> Error {
    Error::unavailable(format_args!("read consumer {consumer} of stream {stream}"), error)
}

/// The message read from the stream's leader; `None` when it doesn't exist.
pub(crate) fn leader_message_if_found(
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

/// The message read by a direct get; `None` when the answering replica doesn't have it.
pub(crate) fn message_if_found(
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
