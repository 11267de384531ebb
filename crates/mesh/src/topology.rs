//! The streams and consumers, as data.

use std::time::Duration;

use herald_model::Lane;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::retry::RetryDelay;

/// The streams' names.
pub mod streams {
    /// Posts accepted and deleted. A post's id is its sequence here.
    pub const POSTS: &str = "POSTS";
    /// The rest of big authors' fan-outs.
    pub const SLICES: &str = "SLICES";
    /// Chunks for timelines, and backfills.
    pub const TIMELINE: &str = "TIMELINE";
    /// Chunks for devices.
    pub const PUSH: &str = "PUSH";
    /// What was settled, for analytics.
    pub const EVENTS: &str = "EVENTS";
    /// JetStream's advisories of messages that were given up.
    pub const ADVISORIES: &str = "ADVISORIES";
}

/// The consumers' names.
pub mod consumers {
    use herald_model::Lane;

    /// Of POSTS: writes posts and request ids to the store.
    pub const ARCHIVE: &str = "archive";
    /// Of POSTS: analytics.
    pub const ANALYTICS_POSTS: &str = "analytics-posts";
    /// Of EVENTS: analytics.
    pub const ANALYTICS_EVENTS: &str = "analytics-events";

    /// Of POSTS: expands the posts of a lane.
    pub const fn fanout(lane: Lane) -> &'static str {
        match lane {
            Lane::High => "fanout-high",
            Lane::Normal => "fanout-normal",
            Lane::Low => "fanout-low",
        }
    }

    /// Of SLICES: goes on with big authors' fan-outs of a lane.
    pub const fn slice(lane: Lane) -> &'static str {
        match lane {
            Lane::High => "slice-high",
            Lane::Normal => "slice-normal",
            Lane::Low => "slice-low",
        }
    }

    /// Of TIMELINE: writes the timelines of a lane.
    pub const fn timeline(lane: Lane) -> &'static str {
        match lane {
            Lane::High => "timeline-high",
            Lane::Normal => "timeline-normal",
            Lane::Low => "timeline-low",
        }
    }

    /// Of PUSH: sends the pushes of a lane.
    pub const fn push(lane: Lane) -> &'static str {
        match lane {
            Lane::High => "push-high",
            Lane::Normal => "push-normal",
            Lane::Low => "push-low",
        }
    }
}

/// How much a stream holds, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamLimits {
    /// Messages older than this are removed, seconds. They stay this long even when acknowledged: the payload of a
    /// message that was given up is still needed. Must outlive all of a message's attempts.
    pub age_seconds_max: u64,
    /// Bytes that the stream may hold, with JetStream's own. When they are used up, publishing is refused
    /// ([`ErrorKind::Full`]). The server sets them aside when the stream is made: together, the streams must fit into
    /// its `max_file_store` (by default three quarters of what is free on the disk).
    pub bytes_max: u64,
}

/// How the streams and consumers are made.
///
/// A store that is down for an hour kills no message: retries wait 15 s on average once the delay is at its maximum,
/// so an hour takes some 250 of the 1,000 attempts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopologyConfig {
    /// On how many servers each stream is kept: 1, 3 or 5.
    pub replicas: usize,
    /// How long a message id is remembered, seconds. The ids live in the server's memory.
    pub dedupe_window_seconds: u64,
    /// How long a worker may be silent about a message before another gets it, seconds. Running handlers extend it
    /// by themselves.
    pub ack_wait_seconds: u64,
    /// Messages of one consumer that may be delivered and not acknowledged, over all its workers; more than all of
    /// them take at a time.
    pub ack_pending_max: u32,
    /// Attempts a message gets before it is given up, on all consumers but push.
    pub attempts_max: u32,
    /// Attempts a push chunk gets before it is given up: some four minutes.
    pub push_attempts_max: u32,
    /// The delays between attempts.
    pub retry: RetryDelay,
    /// POSTS: at 100,000 posts a day of 1 KB, a week is 0.7 GiB.
    pub posts: StreamLimits,
    /// SLICES: one message of 150 bytes for each 65,536 followers of a big author.
    pub slices: StreamLimits,
    /// TIMELINE: 100 million deliveries are some 100,000 chunks and 0.3 GiB; 10 million queued are 30 to 60 MB.
    pub timeline: StreamLimits,
    /// PUSH: chunks of up to 512 recipients with the bell on.
    pub push: StreamLimits,
    /// EVENTS: one message of 300 bytes a settled chunk.
    pub events: StreamLimits,
    /// ADVISORIES: one message of 400 bytes a message given up.
    pub advisories: StreamLimits,
}

const DAY: u64 = 24 * 60 * 60;
const MIB: u64 = 1024 * 1024;

impl Default for TopologyConfig {
    fn default() -> Self {
        Self {
            replicas: 1,
            dedupe_window_seconds: 120,
            ack_wait_seconds: 30,
            ack_pending_max: 8_192,
            attempts_max: 1_000,
            push_attempts_max: 20,
            retry: RetryDelay::default(),
            posts: StreamLimits {
                age_seconds_max: 7 * DAY,
                bytes_max: 4_096 * MIB,
            },
            slices: StreamLimits {
                age_seconds_max: DAY,
                bytes_max: 256 * MIB,
            },
            timeline: StreamLimits {
                age_seconds_max: 3 * DAY,
                bytes_max: 2_048 * MIB,
            },
            push: StreamLimits {
                age_seconds_max: DAY,
                bytes_max: 1_024 * MIB,
            },
            events: StreamLimits {
                age_seconds_max: 3 * DAY,
                bytes_max: 1_024 * MIB,
            },
            advisories: StreamLimits {
                age_seconds_max: 7 * DAY,
                bytes_max: 128 * MIB,
            },
        }
    }
}

impl TopologyConfig {
    /// Checks what the server would refuse later, or accept and then lose messages by. Names the field.
    pub fn validate(&self) -> Result<()> {
        let check = |good: bool, message: &str| {
            if good {
                Ok(())
            } else {
                Err(Error::new(ErrorKind::Invalid, message))
            }
        };
        check([1, 3, 5].contains(&self.replicas), "replicas must be 1, 3 or 5")?;
        check(
            self.dedupe_window_seconds >= 1,
            "dedupe_window_seconds must be at least 1",
        )?;
        check(self.ack_wait_seconds >= 1, "ack_wait_seconds must be at least 1")?;
        check(self.ack_pending_max >= 1, "ack_pending_max must be at least 1")?;
        check(self.attempts_max >= 2, "attempts_max must be at least 2")?;
        check(
            self.push_attempts_max >= 2,
            "push_attempts_max must be at least 2",
        )?;
        check(
            self.retry.delay_ms_base >= 1,
            "retry.delay_ms_base must be at least 1",
        )?;
        check(
            self.retry.delay_ms_max >= self.retry.delay_ms_base,
            "retry.delay_ms_max must be at least retry.delay_ms_base",
        )?;

        let attempt_seconds = self.ack_wait_seconds.max(self.retry.delay_ms_max.div_ceil(1_000));
        for (name, limits, attempts) in [
            ("posts", self.posts, self.attempts_max),
            ("slices", self.slices, self.attempts_max),
            ("timeline", self.timeline, self.attempts_max),
            ("push", self.push, self.push_attempts_max),
            ("events", self.events, self.attempts_max),
            ("advisories", self.advisories, 1),
        ] {
            check(
                limits.bytes_max >= MIB && i64::try_from(limits.bytes_max).is_ok(),
                &format!("{name}.bytes_max must be at least 1048576 (1 MiB) and fit into 63 bits"),
            )?;
            check(
                limits.age_seconds_max >= self.dedupe_window_seconds,
                &format!("{name}.age_seconds_max must be at least dedupe_window_seconds"),
            )?;
            let attempts_seconds = u64::from(attempts).saturating_mul(attempt_seconds);
            check(
                limits.age_seconds_max >= attempts_seconds,
                &format!(
                    "{name}.age_seconds_max must be at least {attempts_seconds}, the time that {attempts} attempts \
                     can take: a message that is removed before its last attempt is lost"
                ),
            )?;
        }
        Ok(())
    }
}

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
}

/// One durable pull consumer with explicit acknowledgements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerSpec {
    /// The stream it reads.
    pub stream: String,
    /// Its name.
    pub name: String,
    /// The subjects it chooses; all of the stream's without one.
    pub filter: Option<String>,
    /// How long a worker may be silent about a message.
    pub ack_wait: Duration,
    /// Attempts a message gets before it is given up; the last one that fails is terminated with its reason.
    pub attempts_max: u32,
    /// Messages that may be delivered and not acknowledged, over all workers.
    pub ack_pending_max: u32,
    /// The delays between attempts.
    pub retry: RetryDelay,
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
        };
        let consumer = |stream: &str, name: &str, filter: Option<String>, attempts_max| ConsumerSpec {
            stream: stream.into(),
            name: name.into(),
            filter,
            ack_wait: Duration::from_secs(config.ack_wait_seconds),
            attempts_max,
            ack_pending_max: config.ack_pending_max,
            retry: config.retry,
        };
        let attempts = config.attempts_max;
        let mut all = vec![
            consumer(streams::POSTS, consumers::ARCHIVE, None, attempts),
            consumer(streams::POSTS, consumers::ANALYTICS_POSTS, None, attempts),
            consumer(streams::EVENTS, consumers::ANALYTICS_EVENTS, None, attempts),
        ];
        for lane in Lane::ALL {
            let filter = |kind: &str| Some(format!("{kind}.{lane}"));
            all.extend([
                consumer(
                    streams::POSTS,
                    consumers::fanout(lane),
                    filter("post.v1.created"),
                    attempts,
                ),
                consumer(
                    streams::SLICES,
                    consumers::slice(lane),
                    filter("fanout.v1.slice"),
                    attempts,
                ),
                consumer(
                    streams::TIMELINE,
                    consumers::timeline(lane),
                    filter("timeline.v1.*"),
                    attempts,
                ),
                consumer(
                    streams::PUSH,
                    consumers::push(lane),
                    filter("push.v1.deliver"),
                    config.push_attempts_max,
                ),
            ]);
        }
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
                stream(streams::POSTS, &["post.v1.*.*"], config.posts),
                stream(streams::SLICES, &["fanout.v1.slice.*"], config.slices),
                stream(streams::TIMELINE, &["timeline.v1.*.*"], config.timeline),
                stream(streams::PUSH, &["push.v1.deliver.*"], config.push),
                stream(streams::EVENTS, &["event.v1.>"], config.events),
            ],
            consumers: all,
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
        assert_eq!(topology.consumers.len(), 3 + 4 * 3);
        assert_eq!(
            topology.consumer("timeline-low").unwrap().filter.as_deref(),
            Some("timeline.v1.*.low")
        );
    }

    #[test]
    fn a_configuration_that_would_lose_messages_is_refused_by_field() {
        let refused = |change: fn(&mut TopologyConfig)| {
            let mut config = TopologyConfig::default();
            change(&mut config);
            let error = config.validate().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            error.to_string()
        };
        assert!(refused(|c| c.replicas = 2).starts_with("replicas "));
        assert!(refused(|c| c.attempts_max = 1).starts_with("attempts_max "));
        assert!(refused(|c| c.slices.age_seconds_max = 3_600).starts_with("slices.age_seconds_max "));
        assert!(refused(|c| c.push.bytes_max = 0).starts_with("push.bytes_max "));
        assert!(refused(|c| c.retry.delay_ms_base = 60_000).starts_with("retry.delay_ms_max "));
        assert!(
            refused(|c| c.dedupe_window_seconds = 10 * DAY)
                .contains("age_seconds_max must be at least dedupe")
        );
    }
}
