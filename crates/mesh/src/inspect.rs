//! Reads how streams and consumers are set up on a server, for diagnosis.

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer;
use async_nats::jetstream::context::{ConsumerInfoErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream;
use futures::future::join_all;
use herald_model::time::Timestamp;
use serde::Deserialize;
use time::OffsetDateTime;

use crate::Mesh;
use crate::error::{Error, Result};
use crate::last::from_server;
use crate::topology::{ConsumerSpec, StreamSpec, Topology};

/// What a server says about streams and consumers.
#[derive(Debug, Default)]
pub struct Inspection {
    /// The streams that exist, in the order of the topology.
    pub streams: Vec<StreamState>,
    /// The consumers that exist.
    pub consumers: Vec<ConsumerState>,
    /// Why others can't be read: no server answers for them, or not to this user.
    pub unreadable: Vec<Error>,
    /// The consumers that can't be read, by stream.
    pub unreadable_consumers: Vec<UnreadableConsumers>,
}

/// Consumers of a stream that can't be read.
#[derive(Debug)]
pub struct UnreadableConsumers {
    /// The stream.
    pub stream: String,
    /// The consumers, at least one, in the order of the topology.
    pub consumers: Vec<String>,
    /// Why the first of them can't be read.
    pub error: Error,
}

impl Inspection {
    fn add_unreadable(&mut self, spec: &ConsumerSpec, error: Error) {
        let known = &mut self.unreadable_consumers;
        match known.iter_mut().find(|one| one.stream == spec.stream) {
            Some(one) => one.consumers.push(spec.name.clone()),
            None => known.push(UnreadableConsumers {
                stream: spec.stream.clone(),
                consumers: vec![spec.name.clone()],
                error,
            }),
        }
    }
}

/// A stream as it is on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamState {
    /// Stream name.
    pub name: String,
    /// When the stream was created.
    pub created_at: Timestamp,
    /// When the oldest message was stored; `None` without a message.
    pub first_at: Option<Timestamp>,
    /// Maximum age of a message; zero: none.
    pub age_max: Duration,
    /// Time in which a message id is deduplicated.
    pub dedupe_window: Duration,
    /// Number of replicas.
    pub replicas: usize,
    /// The cluster of the server; `None` for a server that stands alone.
    pub cluster: Option<Cluster>,
}

/// The servers that have a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// The leader; empty while there is none.
    pub leader: String,
    /// Servers that don't have all messages of the leader: offline, or behind.
    pub behind: Vec<String>,
}

/// A consumer as it is on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerState {
    /// Stream of the consumer.
    pub stream: String,
    /// Consumer name.
    pub name: String,
    /// When the consumer was created.
    pub created_at: Timestamp,
    /// Time without an acknowledgement or progress after which a message is redelivered.
    pub ack_wait: Duration,
    /// Delays before redeliveries, instead of `ack_wait`; Herald sets none.
    pub backoff: Vec<Duration>,
    /// Maximum number of deliveries of a message; `None`: no limit.
    pub attempts_max: Option<u64>,
    /// Maximum number of delivered and unacknowledged messages; `None`: no limit.
    pub ack_pending_max: Option<u64>,
    /// Messages that were not delivered to a worker yet.
    pub pending_count: u64,
    /// Messages delivered and not acknowledged yet.
    pub ack_pending_count: u64,
    /// Pull requests that wait for a message.
    pub waiting_pull_count: u64,
    /// Deliveries so far, redeliveries included.
    pub delivered_count: u64,
    /// Stream sequence up to which all messages are acknowledged or terminated.
    pub ack_floor: u64,
    /// Remaining time of a pause; zero when the consumer is not paused.
    pub paused_for: Duration,
}

/// The clock of a server, read between two readings of the own one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockReading {
    /// The own time before the request was sent.
    pub sent_at: Timestamp,
    /// The time that the server answered with.
    pub time: Timestamp,
    /// The own time when the answer had arrived.
    pub received_at: Timestamp,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default, with = "time::serde::rfc3339::option")]
    ts: Option<OffsetDateTime>,
}

impl Mesh {
    /// Reads the streams of a topology and their consumers. Those that don't exist are left out.
    pub async fn inspect(&self, topology: &Topology) -> Inspection {
        let mut found = Inspection::default();
        let streams = topology.streams.iter().map(|spec| self.inspect_stream(spec));
        for read in join_all(streams).await {
            match read {
                Ok(stream) => found.streams.extend(stream),
                Err(error) => found.unreadable.push(error),
            }
        }
        let is_there = |spec: &&ConsumerSpec| found.streams.iter().any(|one| one.name == spec.stream);
        let consumers = topology.consumers.iter().filter(is_there);
        let states = consumers.map(|spec| async move { (spec, self.consumer_state(spec).await) });
        for (spec, read) in join_all(states).await {
            match read {
                Ok(consumer) => found.consumers.extend(consumer),
                Err(error) => found.add_unreadable(spec, error),
            }
        }
        found
    }

    /// Reads the clock of the server that leads a stream; `None` if the server doesn't tell it.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) when no server answers.
    pub async fn clock_of(&self, stream: &str) -> Result<Option<ClockReading>> {
        let subject = format!("$JS.API.STREAM.INFO.{stream}");
        let sent_at = Timestamp::now();
        let answer = self.publishing().client.request(subject, "".into()).await;
        let received_at = Timestamp::now();
        let answer = answer
            .map_err(|error| Error::unavailable(format_args!("read the clock of stream {stream}"), error))?;
        let answer: Option<Answer> = serde_json::from_slice(&answer.payload).ok();
        Ok(answer.and_then(|answer| answer.ts).map(|time| ClockReading {
            sent_at,
            time: from_server(time),
            received_at,
        }))
    }

    async fn inspect_stream(&self, spec: &StreamSpec) -> Result<Option<StreamState>> {
        match self.publishing().jetstream.get_stream(&spec.name).await {
            Ok(stream) => Ok(Some(describe_stream(stream.cached_info()))),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                    Ok(None)
                }
                _ => Err(Error::unavailable(
                    format_args!("read stream {}", spec.name),
                    error,
                )),
            },
        }
    }

    async fn consumer_state(&self, spec: &ConsumerSpec) -> Result<Option<ConsumerState>> {
        match self.stream(&spec.stream).await?.consumer_info(&spec.name).await {
            Ok(info) => Ok(Some(describe_consumer(info))),
            Err(error) => match error.kind() {
                ConsumerInfoErrorKind::NotFound | ConsumerInfoErrorKind::StreamNotFound => Ok(None),
                _ => Err(Error::unavailable(
                    format_args!("read consumer {} of stream {}", spec.name, spec.stream),
                    error,
                )),
            },
        }
    }
}

fn describe_stream(info: &stream::Info) -> StreamState {
    let first_at = from_server(info.state.first_timestamp);
    // A server that stands alone may name itself as the leader, but has no cluster.
    let clustered =
        |cluster: &&stream::ClusterInfo| cluster.name.as_ref().is_some_and(|name| !name.is_empty());
    let cluster = info.cluster.as_ref().filter(clustered);
    StreamState {
        name: info.config.name.clone(),
        created_at: from_server(info.created),
        first_at: (info.state.messages > 0).then_some(first_at),
        age_max: info.config.max_age,
        dedupe_window: info.config.duplicate_window,
        replicas: info.config.num_replicas,
        cluster: cluster.map(|cluster| Cluster {
            leader: cluster.leader.clone().unwrap_or_default(),
            behind: cluster
                .replicas
                .iter()
                .filter(|one| one.offline || !one.current)
                .map(|one| one.name.clone())
                .collect(),
        }),
    }
}

fn describe_consumer(info: consumer::Info) -> ConsumerState {
    ConsumerState {
        stream: info.stream_name,
        name: info.name,
        created_at: from_server(info.created),
        ack_wait: info.config.ack_wait,
        backoff: info.config.backoff,
        attempts_max: u64::try_from(info.config.max_deliver).ok().filter(|max| *max > 0),
        ack_pending_max: u64::try_from(info.config.max_ack_pending)
            .ok()
            .filter(|max| *max > 0),
        pending_count: info.num_pending,
        ack_pending_count: info.num_ack_pending as u64,
        waiting_pull_count: info.num_waiting as u64,
        delivered_count: info.delivered.consumer_sequence,
        ack_floor: info.ack_floor.stream_sequence,
        paused_for: if info.paused {
            info.pause_remaining.unwrap_or_default()
        } else {
            Duration::ZERO
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, TopologyConfig};

    #[test]
    fn consumers_that_can_not_be_read_are_told_by_stream() {
        let topology = Topology::new(&TopologyConfig::default()).unwrap();
        let mut found = Inspection::default();
        for spec in &topology.consumers {
            found.add_unreadable(spec, Error::new(ErrorKind::Unavailable, &spec.name));
        }
        let told = &found.unreadable_consumers;
        let all: Vec<_> = told.iter().flat_map(|one| &one.consumers).collect();
        assert_eq!(all.len(), topology.consumers.len());
        for one in told {
            assert_eq!(told.iter().filter(|other| other.stream == one.stream).count(), 1);
            assert_eq!(one.error.to_string(), one.consumers[0]);
            let is_of_stream = |name: &String| topology.consumer(name).unwrap().stream == one.stream;
            assert!(one.consumers.iter().all(is_of_stream));
        }
        assert!(told.len() <= topology.streams.len());
    }
}
