//! Specifications of the streams and consumers.

mod config;
mod names;
mod policy;
mod users;

use std::time::Duration;

pub use config::{StreamLimits, TopologyConfig};
use herald_model::{Lane, time::Timestamp};
use names::consumers::ConsumerKind;
pub use names::{consumers, streams};
pub use policy::{ConsumerPolicies, ConsumerPolicy, ConsumerSpec, DelayLimits};
pub use users::NatsUser;

use crate::Subject;
use crate::error::Result;

/// One stream. It stores messages in files, keeps them until a limit of size or age (limits retention), and refuses new
/// ones when full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSpec {
    /// Stream name.
    pub name: String,
    /// Subjects.
    pub subjects: Vec<String>,
    /// Size and age limits.
    pub limits: StreamLimits,
    /// Sequence of the first message of a stream that is created; an existing stream keeps its own.
    pub first_sequence: u64,
    /// Number of replicas.
    pub replicas: usize,
    /// Time in which a message id is deduplicated.
    pub dedupe_window: Duration,
    /// Whether this is a delay queue: supports schedules, with work-queue retention. A stream with schedules can't
    /// refuse messages when full, so publishers enforce its size limit.
    pub delay_queue: bool,
}

/// All streams and consumers of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// Streams, in the order of creation.
    pub streams: Vec<StreamSpec>,
    /// Consumers, created after all streams.
    pub consumers: Vec<ConsumerSpec>,
}

impl Topology {
    /// Builds the topology of a configuration. ADVISORIES is created first, because advisories without a stream are
    /// lost.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) names the invalid field.
    pub fn new(config: &TopologyConfig) -> Result<Self> {
        config.validate()?;
        let stream = |name: &str, subjects: &[&str], limits| StreamSpec {
            name: name.into(),
            subjects: subjects.iter().copied().map(Into::into).collect(),
            limits,
            first_sequence: 1,
            replicas: config.replicas,
            dedupe_window: Duration::from_secs(config.dedupe_window_seconds),
            delay_queue: name == streams::LATER,
        };
        Ok(Self {
            streams: vec![
                stream(
                    streams::ADVISORIES,
                    &[
                        "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>",
                        "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>",
                    ],
                    config.advisories,
                ),
                stream(streams::DLQ, &["dlq.v1.>"], config.dlq),
                stream(streams::REDRIVE, &["redrive.v1.*"], config.redrive),
                stream(streams::POSTS, &["post.v1.*.*"], config.posts),
                stream(streams::SLICES, &["fanout.v1.slice.*"], config.slices),
                stream(streams::TIMELINE, &["timeline.v1.*.*"], config.timeline),
                stream(streams::PUSH, &["push.v1.deliver.*"], config.push),
                stream(streams::EVENTS, &["event.v1.>"], config.events),
                stream(
                    streams::LATER,
                    &["later.v1.wait.*.*.*", "later.v1.due.*.*"],
                    config.later,
                ),
            ],
            consumers: all_consumers(config),
        })
    }

    /// Lets streams that are created begin above the sequences of all earlier streams of their name: at `now`, in
    /// microseconds since 1970. So a row of the store that is named by a sequence is never taken for that of another
    /// message, although the stream was deleted in between.
    ///
    /// People read the ids of dead letters, which are the sequences of DLQ: it begins after `dead_letter_last`, the
    /// greatest one that is known. POSTS begins at 1: it is never made again beside a store with posts.
    #[must_use]
    pub fn beginning(mut self, now: Timestamp, dead_letter_last: u64) -> Self {
        let now = now.0.max(1).cast_unsigned();
        for stream in &mut self.streams {
            stream.first_sequence = match stream.name.as_str() {
                streams::POSTS => 1,
                streams::DLQ => dead_letter_last + 1,
                _ => now,
            };
        }
        self
    }

    /// The consumer with this name.
    pub fn consumer(&self, name: &str) -> Option<&ConsumerSpec> {
        self.consumers.iter().find(|consumer| consumer.name == name)
    }

    /// The consumers of a stream.
    pub fn consumers_of(&self, stream: &str) -> impl Iterator<Item = &ConsumerSpec> {
        self.consumers
            .iter()
            .filter(move |consumer| consumer.stream == stream)
    }

    /// The stream with this name.
    pub fn stream(&self, name: &str) -> Option<&StreamSpec> {
        self.streams.iter().find(|stream| stream.name == name)
    }
}

fn all_consumers(config: &TopologyConfig) -> Vec<ConsumerSpec> {
    let policies = &config.consumers;
    let delay_limits = DelayLimits {
        hold_max: Duration::from_millis(policies.push.hold_ms_max),
        delay_max: Duration::from_secs(config.later.age_seconds_max) / 2,
        bytes_max: config.later.bytes_max,
    };
    let waits_only = DelayLimits {
        hold_max: Duration::MAX,
        ..delay_limits
    };
    let unfiltered = |stream, name, policy, users| ConsumerSpec::new(stream, name, None, policy, users);
    let deadletter = &[NatsUser::Deadletter];
    let mut all = vec![
        unfiltered(
            streams::ADVISORIES,
            consumers::DEADLETTER,
            &policies.deadletter,
            deadletter,
        ),
        unfiltered(
            streams::DLQ,
            consumers::DEAD_LETTERS,
            &policies.deadletter,
            deadletter,
        ),
        unfiltered(
            streams::POSTS,
            consumers::ARCHIVE,
            &policies.archive,
            ConsumerKind::Archive.users(),
        ),
        unfiltered(
            streams::POSTS,
            consumers::ANALYTICS_POSTS,
            &policies.analytics,
            ConsumerKind::AnalyticsPosts.users(),
        ),
        unfiltered(
            streams::EVENTS,
            consumers::ANALYTICS_EVENTS,
            &policies.analytics,
            ConsumerKind::AnalyticsEvents.users(),
        ),
    ];
    for lane in Lane::ALL {
        let filtered = |stream, name, subjects: &str, policy, users| {
            ConsumerSpec::new(stream, name, Some(format!("{subjects}.{lane}")), policy, users)
        };
        let (fanout, slice) = (consumers::fanout(lane), consumers::slice(lane));
        let (timeline, push) = (consumers::timeline(lane), consumers::push(lane));
        let push = ConsumerSpec {
            delay_limits: Some(delay_limits),
            ..filtered(
                streams::PUSH,
                push,
                "push.v1.deliver",
                &policies.push,
                ConsumerKind::Push.users(),
            )
        };
        let timeline = ConsumerSpec {
            delay_limits: Some(waits_only),
            ..filtered(
                streams::TIMELINE,
                timeline,
                "timeline.v1.*",
                &policies.timeline,
                ConsumerKind::Timeline.users(),
            )
        };
        all.extend([
            filtered(
                streams::POSTS,
                fanout,
                "post.v1.created",
                &policies.fanout,
                ConsumerKind::Fanout.users(),
            ),
            filtered(
                streams::SLICES,
                slice,
                "fanout.v1.slice",
                &policies.slice,
                ConsumerKind::Slice.users(),
            ),
            timeline,
            push,
        ]);
    }
    all.push(ConsumerSpec::new(
        streams::LATER,
        consumers::LATER,
        Some(Subject::Due.as_str().into()),
        &policies.later,
        // Each service with consumers that use the delay queue runs the requeuer.
        &[NatsUser::Timeline, NatsUser::Push],
    ));
    all.extend(ConsumerKind::ALL.map(|kind| {
        let returns = matches!(kind, ConsumerKind::Timeline | ConsumerKind::Push);
        ConsumerSpec {
            // The copy of a redriven message that waits returns to the original stream.
            delay_limits: returns.then_some(waits_only),
            ..ConsumerSpec::new(
                streams::REDRIVE,
                consumers::redrive(kind),
                Some(kind.subject()),
                &policies.redrive,
                kind.users(),
            )
        }
    }));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_topology_is_valid_and_each_consumer_has_a_stream() {
        let topology = Topology::new(&TopologyConfig::default()).unwrap();
        assert_eq!(topology.streams[0].name, streams::ADVISORIES);
        for consumer in &topology.consumers {
            assert!(topology.stream(&consumer.stream).is_some(), "{consumer:?}");
            assert!(!consumer.users.is_empty(), "{consumer:?}");
        }
        assert_eq!(topology.consumers.len(), 5 + 4 * 3 + 1 + 7);
        assert_eq!(
            topology.consumer("timeline-low").unwrap().filter.as_deref(),
            Some("timeline.v1.*.low")
        );
        assert_eq!(
            topology.consumer("redrive-push").unwrap().filter.as_deref(),
            Some("redrive.v1.push")
        );
    }
}
