//! The streams and consumers, as data.

mod config;
mod names;
mod policy;

use std::time::Duration;

pub use config::{StreamLimits, TopologyConfig};
use herald_model::Lane;
pub use names::{consumers, streams};
pub use policy::{ConsumerPolicies, ConsumerPolicy, ConsumerSpec, Waits};

use crate::Subject;
use crate::error::Result;

/// One stream: kept in files, with limits, refusing what is too much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSpec {
    /// Its name.
    pub name: String,
    /// What it takes.
    pub subjects: Vec<String>,
    /// How much it holds, and how long.
    pub limits: StreamLimits,
    /// On how many servers.
    pub replicas: usize,
    /// How long a message id is remembered.
    pub dedupe_window: Duration,
    /// Whether it is a delay queue: it takes schedules, and keeps nothing that was acknowledged. The server refuses
    /// schedules in a stream that refuses what is too much, so the bytes of this one are kept by those who publish to it.
    pub delay_queue: bool,
}

/// All there must be on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// The streams, in the order in which they are made.
    pub streams: Vec<StreamSpec>,
    /// The consumers, made after all the streams.
    pub consumers: Vec<ConsumerSpec>,
}

impl Topology {
    /// The mesh of this configuration. ADVISORIES comes first: an advisory that nobody stores is gone.
    pub fn new(config: &TopologyConfig) -> Result<Self> {
        config.validate()?;
        let stream = |name: &str, subjects: &[&str], limits| StreamSpec {
            name: name.into(),
            subjects: subjects.iter().copied().map(Into::into).collect(),
            limits,
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

    /// The consumer of this name.
    pub fn consumer(&self, name: &str) -> Option<&ConsumerSpec> {
        self.consumers.iter().find(|consumer| consumer.name == name)
    }

    /// The stream of this name.
    pub fn stream(&self, name: &str) -> Option<&StreamSpec> {
        self.streams.iter().find(|stream| stream.name == name)
    }
}

fn all_consumers(config: &TopologyConfig) -> Vec<ConsumerSpec> {
    let of = &config.consumers;
    let waits = Waits {
        hold_max: Duration::from_millis(of.push.hold_ms_max),
        wait_max: Duration::from_secs(config.later.age_seconds_max) / 2,
        bytes_max: config.later.bytes_max,
    };
    let whole = |stream, name, policy| ConsumerSpec::new(stream, name, None, policy);
    let mut all = vec![
        whole(streams::ADVISORIES, consumers::DEADLETTER, &of.deadletter),
        whole(streams::DLQ, consumers::DEAD_LETTERS, &of.deadletter),
        whole(streams::POSTS, consumers::ARCHIVE, &of.archive),
        whole(streams::POSTS, consumers::ANALYTICS_POSTS, &of.analytics),
        whole(streams::EVENTS, consumers::ANALYTICS_EVENTS, &of.analytics),
    ];
    for lane in Lane::ALL {
        let part = |stream, name, subjects: &str, policy| {
            ConsumerSpec::new(stream, name, Some(format!("{subjects}.{lane}")), policy)
        };
        let (fanout, slice) = (consumers::fanout(lane), consumers::slice(lane));
        let (timeline, push) = (consumers::timeline(lane), consumers::push(lane));
        let push = ConsumerSpec {
            waits: Some(waits),
            ..part(streams::PUSH, push, "push.v1.deliver", &of.push)
        };
        all.extend([
            part(streams::POSTS, fanout, "post.v1.created", &of.fanout),
            part(streams::SLICES, slice, "fanout.v1.slice", &of.slice),
            part(streams::TIMELINE, timeline, "timeline.v1.*", &of.timeline),
            push,
        ]);
    }
    all.push(ConsumerSpec::new(
        streams::LATER,
        consumers::LATER,
        Some(Subject::Due.as_str().into()),
        &of.later,
    ));
    all.extend(consumers::ConsumerKind::ALL.map(|kind| {
        ConsumerSpec::new(
            streams::REDRIVE,
            consumers::redrive(kind),
            Some(kind.subject()),
            &of.redrive,
        )
    }));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_each_consumer_has_its_stream() {
        let topology = Topology::new(&TopologyConfig::default()).unwrap();
        assert_eq!(topology.streams[0].name, streams::ADVISORIES);
        for consumer in &topology.consumers {
            assert!(topology.stream(&consumer.stream).is_some(), "{consumer:?}");
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
