//! All metrics of the mesh: what the process handles and publishes ([`Metrics`]), and what the broker has
//! ([`BrokerMetrics`]).

use std::time::Duration;

use herald_metrics::{Counter, Family, FloatGauge, Gauge, Histogram, Registry, seconds_family};

use crate::topology::streams;
use crate::{ConsumerLag, Error, ErrorKind, Published, StreamLag};

type Label = (&'static str, &'static str);
type Seconds<L> = Family<L, Histogram, fn() -> Histogram>;

/// What a process handles and publishes. Clones share the values.
#[derive(Debug, Clone)]
pub struct Metrics {
    messages: Family<[(&'static str, String); 2], Counter>,
    retries: Family<[(&'static str, String); 2], Counter>,
    redeliveries: Family<[(&'static str, String); 1], Counter>,
    process_seconds: Seconds<[(&'static str, String); 1]>,
    publish_seconds: Seconds<[Label; 1]>,
    published: Family<[Label; 2], Counter>,
}

impl Default for Metrics {
    /// Metrics that are not exported.
    fn default() -> Self {
        Self {
            messages: Family::default(),
            retries: Family::default(),
            redeliveries: Family::default(),
            process_seconds: seconds_family(),
            publish_seconds: seconds_family(),
            published: Family::default(),
        }
    }
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "consumer_messages",
            "Messages that this process has settled, by consumer and result",
            metrics.messages.clone(),
        );
        registry.register(
            "consumer_retries",
            "Messages that this process returned to be tried again, by consumer and reason",
            metrics.retries.clone(),
        );
        registry.register(
            "consumer_redeliveries",
            "Messages that this process received and that were delivered before, by consumer",
            metrics.redeliveries.clone(),
        );
        registry.register(
            "consumer_process_seconds",
            "Time from the arrival of a message until it is settled, by consumer",
            metrics.process_seconds.clone(),
        );
        registry.register(
            "publish_seconds",
            "Time until a stream has stored a message, retries included, by stream",
            metrics.publish_seconds.clone(),
        );
        registry.register(
            "publish_messages",
            "Messages published to a stream, by result",
            metrics.published.clone(),
        );
        metrics
    }

    /// The metrics of one consumer. From now on they are exported, with the value 0.
    pub(crate) fn of_consumer(&self, consumer: &str) -> ConsumerMetrics {
        let pair = |family: &Family<[(&'static str, String); 2], Counter>, label, value: &str| {
            let labels = [("consumer", consumer.to_owned()), (label, value.to_owned())];
            family.get_or_create_owned(&labels)
        };
        let result = |value| pair(&self.messages, "result", value);
        let reason = |value| pair(&self.retries, "reason", value);
        let name = [("consumer", consumer.to_owned())];
        ConsumerMetrics {
            acked: result("acked"),
            retried: result("retried"),
            waiting: result("waiting"),
            terminated: result("terminated"),
            released: result("released"),
            transient: reason("transient"),
            permanent: reason("permanent"),
            panics: reason("panic"),
            queue_full: reason("delay_queue_full"),
            redeliveries: self.redeliveries.get_or_create_owned(&name),
            process_seconds: self.process_seconds.get_or_create_owned(&name),
        }
    }

    /// Records a publish that has ended.
    pub(crate) fn record_publish(&self, subject: &str, result: Result<&Published, &Error>, after: Duration) {
        let stream = stream_of(subject);
        let result = match result {
            Ok(published) => {
                let seconds = self.publish_seconds.get_or_create(&[("stream", stream)]);
                seconds.observe(after.as_secs_f64());
                if published.duplicate {
                    "duplicate"
                } else {
                    "stored"
                }
            }
            Err(error) => match error.kind() {
                ErrorKind::Full => "full",
                ErrorKind::TooLarge => "too_large",
                ErrorKind::Unavailable => "unavailable",
                _ => "refused",
            },
        };
        self.published
            .get_or_create(&[("stream", stream), ("result", result)])
            .inc();
    }
}

/// The metrics of one consumer.
#[derive(Debug, Clone)]
pub(crate) struct ConsumerMetrics {
    pub(crate) acked: Counter,
    retried: Counter,
    /// A copy continues from the delay queue.
    pub(crate) waiting: Counter,
    pub(crate) terminated: Counter,
    /// Returned unhandled.
    pub(crate) released: Counter,
    transient: Counter,
    permanent: Counter,
    panics: Counter,
    queue_full: Counter,
    pub(crate) redeliveries: Counter,
    pub(crate) process_seconds: Histogram,
}

/// Why a message is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetryCause {
    /// A retry can help.
    Transient,
    /// A retry can't help until data or code is repaired.
    Permanent,
    /// The handler panicked.
    Panic,
    /// The message waits, but the delay queue can't take it.
    QueueFull,
}

impl ConsumerMetrics {
    pub(crate) fn count_retry(&self, cause: RetryCause) {
        self.retried.inc();
        match cause {
            RetryCause::Transient => self.transient.inc(),
            RetryCause::Permanent => self.permanent.inc(),
            RetryCause::Panic => self.panics.inc(),
            RetryCause::QueueFull => self.queue_full.inc(),
        };
    }
}

/// The stream of a subject of the mesh, as a label.
fn stream_of(subject: &str) -> &'static str {
    match subject.split('.').next() {
        Some("post") => streams::POSTS,
        Some("fanout") => streams::SLICES,
        Some("timeline") => streams::TIMELINE,
        Some("push") => streams::PUSH,
        Some("event") => streams::EVENTS,
        Some("later") => streams::LATER,
        Some("$JS") => streams::ADVISORIES,
        Some("dlq") => streams::DLQ,
        Some("redrive") => streams::REDRIVE,
        _ => "other",
    }
}

/// What the broker has, as it was read last. What can't be read has no values: old ones, or 0, would be taken for the truth.
#[derive(Debug, Clone, Default)]
pub struct BrokerMetrics {
    stream_up: Family<[(&'static str, String); 1], Gauge>,
    stream_messages: Family<[(&'static str, String); 1], Gauge>,
    stream_bytes: Family<[(&'static str, String); 1], Gauge>,
    stream_limit_bytes: Family<[(&'static str, String); 1], Gauge>,
    stream_last_sequence: Family<[(&'static str, String); 1], Gauge>,
    pending: Family<[(&'static str, String); 1], Gauge>,
    ack_pending: Family<[(&'static str, String); 1], Gauge>,
    redelivered: Family<[(&'static str, String); 1], Gauge>,
    waiting_pulls: Family<[(&'static str, String); 1], Gauge>,
    lag_deliveries: Family<[(&'static str, String); 1], FloatGauge>,
    lag_seconds: Family<[(&'static str, String); 1], FloatGauge>,
    failures: Counter,
}

impl BrokerMetrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let of_streams = [
            (
                "stream_up",
                "Whether the leader of a stream answered at the last reading: 1 or 0",
                &metrics.stream_up,
            ),
            (
                "stream_messages",
                "Messages in a stream",
                &metrics.stream_messages,
            ),
            ("stream_bytes", "Bytes in a stream", &metrics.stream_bytes),
            (
                "stream_limit_bytes",
                "Bytes that a stream can hold",
                &metrics.stream_limit_bytes,
            ),
            (
                "stream_last_sequence",
                "Sequence of the newest message of a stream",
                &metrics.stream_last_sequence,
            ),
            (
                "consumer_pending_messages",
                "Messages of a consumer that were not delivered to a worker",
                &metrics.pending,
            ),
            (
                "consumer_ack_pending_messages",
                "Messages of a consumer that are in the hands of a worker or wait for a retry",
                &metrics.ack_pending,
            ),
            (
                "consumer_redelivered_messages",
                "Messages of a consumer that were delivered more than once and are not settled",
                &metrics.redelivered,
            ),
            (
                "consumer_waiting_pulls",
                "Requests for messages of a consumer that wait at the broker",
                &metrics.waiting_pulls,
            ),
        ];
        for (name, help, family) in of_streams {
            registry.register(name, help, family.clone());
        }
        registry.register(
            "consumer_lag_deliveries",
            "Deliveries in the messages of a consumer that are not settled, estimated from a sample of them",
            metrics.lag_deliveries.clone(),
        );
        registry.register(
            "consumer_lag_seconds",
            "Age of the oldest message of a consumer that is not settled; 0 without one",
            metrics.lag_seconds.clone(),
        );
        registry.register(
            "broker_read_failures",
            "Readings of a stream or a consumer that failed",
            metrics.failures.clone(),
        );
        metrics
    }

    /// Shows what was read of a stream.
    pub fn show_stream(&self, read: &StreamLag) {
        let name = [("stream", read.stream.clone())];
        self.stream_up.get_or_create(&name).set(1);
        self.stream_messages
            .get_or_create(&name)
            .set(int(read.message_count));
        self.stream_bytes.get_or_create(&name).set(int(read.byte_count));
        self.stream_limit_bytes
            .get_or_create(&name)
            .set(int(read.byte_count_max));
        self.stream_last_sequence
            .get_or_create(&name)
            .set(int(read.last_sequence));
    }

    /// Shows that a stream can't be read.
    pub fn show_unreadable_stream(&self, stream: &str) {
        self.failures.inc();
        let name = [("stream", stream.to_owned())];
        self.stream_up.get_or_create(&name).set(0);
        for family in [
            &self.stream_messages,
            &self.stream_bytes,
            &self.stream_limit_bytes,
            &self.stream_last_sequence,
        ] {
            family.remove(&name);
        }
    }

    /// Shows what was read of a consumer. `deliveries`: those in its messages that are not settled.
    pub fn show_consumer(&self, read: &ConsumerLag, deliveries: f64) {
        let name = [("consumer", read.consumer.clone())];
        self.pending.get_or_create(&name).set(int(read.pending_count));
        self.ack_pending
            .get_or_create(&name)
            .set(int(read.ack_pending_count));
        self.redelivered
            .get_or_create(&name)
            .set(int(read.redelivered_count));
        self.waiting_pulls
            .get_or_create(&name)
            .set(int(read.waiting_pull_count));
        self.lag_deliveries.get_or_create(&name).set(deliveries);
        self.lag_seconds
            .get_or_create(&name)
            .set(read.oldest_age.as_secs_f64());
    }

    /// Shows that a consumer can't be read.
    pub fn show_unreadable_consumer(&self, consumer: &str) {
        self.failures.inc();
        let name = [("consumer", consumer.to_owned())];
        for family in [
            &self.pending,
            &self.ack_pending,
            &self.redelivered,
            &self.waiting_pulls,
        ] {
            family.remove(&name);
        }
        for family in [&self.lag_deliveries, &self.lag_seconds] {
            family.remove(&name);
        }
    }
}

fn int(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use herald_metrics::Shared;

    use super::*;
    use crate::{Subject, Topology, TopologyConfig};

    #[test]
    fn each_subject_has_the_stream_that_stores_it() {
        let topology = Topology::new(&TopologyConfig::default()).unwrap();
        for stream in &topology.streams {
            for subject in &stream.subjects {
                assert_eq!(stream_of(subject), stream.name, "{subject}");
            }
        }
        assert_eq!(stream_of(Subject::LiveTimeline.as_str()), "other");
    }

    #[test]
    fn what_can_not_be_read_has_no_values() {
        let shared = Shared::new();
        let metrics = shared.register(BrokerMetrics::new);
        let mut read = StreamLag {
            stream: "POSTS".into(),
            message_count: 3,
            byte_count: 400,
            byte_count_max: 1_000,
            first_sequence: 1,
            last_sequence: 3,
            consumers: Vec::new(),
        };
        metrics.show_stream(&read);
        assert!(
            shared
                .open_metrics()
                .contains("herald_stream_messages{stream=\"POSTS\"} 3\n")
        );
        metrics.show_unreadable_stream("POSTS");
        let text = shared.open_metrics();
        assert!(text.contains("herald_stream_up{stream=\"POSTS\"} 0\n"), "{text}");
        assert!(!text.contains("herald_stream_messages{"), "{text}");
        assert!(text.contains("herald_broker_read_failures_total 1\n"), "{text}");
        read.message_count = 4;
        metrics.show_stream(&read);
        assert!(
            shared
                .open_metrics()
                .contains("herald_stream_up{stream=\"POSTS\"} 1\n")
        );
    }
}
