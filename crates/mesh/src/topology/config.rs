//! How the streams and consumers are made.

use serde::{Deserialize, Serialize};

use super::policy::ConsumerPolicies;
use crate::error::{Error, ErrorKind, Result};

const DAY: u64 = 24 * 60 * 60;
const MIB: u64 = 1024 * 1024;

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

impl StreamLimits {
    const fn new(days: u64, mib: u64) -> Self {
        Self {
            age_seconds_max: days * DAY,
            bytes_max: mib * MIB,
        }
    }
}

/// How the streams and consumers are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopologyConfig {
    /// On how many servers each stream is kept: 1, 3 or 5.
    pub replicas: usize,
    /// How long a message id is remembered, seconds. The ids live in the server's memory.
    pub dedupe_window_seconds: u64,
    /// How the consumers treat their messages.
    pub consumers: ConsumerPolicies,
    /// POSTS: at 100,000 posts a day of 1 KB, a week is 0.7 GiB.
    pub posts: StreamLimits,
    /// SLICES: one message of 150 bytes for each 65,536 followers of a big author.
    pub slices: StreamLimits,
    /// TIMELINE: 100 million deliveries are some 100,000 chunks and 0.3 GiB; 10 million queued are 30 to 60 MB.
    pub timeline: StreamLimits,
    /// PUSH: chunks of up to 512 recipients with the bell on.
    pub push: StreamLimits,
    /// EVENTS: some 60 bytes a settled chunk, and 250 a message of up to 64 of them.
    pub events: StreamLimits,
    /// LATER: push chunks whose provider asked for a wait, 1 KB each. The bytes are kept by those who publish.
    pub later: StreamLimits,
    /// ADVISORIES: one message of 400 bytes a message given up.
    pub advisories: StreamLimits,
    /// DLQ: a dead letter is the message that was given up and 500 bytes about it; a full timeline chunk makes 12 KB.
    pub dlq: StreamLimits,
    /// REDRIVE: dead letters on their second way.
    pub redrive: StreamLimits,
}

impl Default for TopologyConfig {
    fn default() -> Self {
        Self {
            replicas: 1,
            dedupe_window_seconds: 120,
            consumers: ConsumerPolicies::default(),
            posts: StreamLimits::new(7, 4_096),
            slices: StreamLimits::new(1, 256),
            timeline: StreamLimits::new(3, 2_048),
            push: StreamLimits::new(1, 1_024),
            events: StreamLimits::new(3, 1_024),
            later: StreamLimits::new(7, 256),
            advisories: StreamLimits::new(7, 128),
            dlq: StreamLimits::new(30, 1_024),
            redrive: StreamLimits::new(7, 512),
        }
    }
}

impl TopologyConfig {
    /// Bytes that all streams may hold together.
    pub fn bytes_max(&self) -> u64 {
        self.limits()
            .iter()
            .fold(0, |sum, (_, limits)| sum.saturating_add(limits.bytes_max))
    }

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
        self.consumers.validate()?;
        for (name, limits) in self.limits() {
            check(
                limits.bytes_max >= MIB && i64::try_from(limits.bytes_max).is_ok(),
                &format!("{name}.bytes_max must be at least 1048576 (1 MiB) and fit into 63 bits"),
            )?;
            check(
                limits.age_seconds_max >= self.dedupe_window_seconds,
                &format!("{name}.age_seconds_max must be at least dedupe_window_seconds"),
            )?;
        }
        let of = &self.consumers;
        for (stream, limits, kind, policy) in [
            ("posts", self.posts, "archive", of.archive),
            ("posts", self.posts, "analytics", of.analytics),
            ("posts", self.posts, "fanout", of.fanout),
            ("slices", self.slices, "slice", of.slice),
            ("timeline", self.timeline, "timeline", of.timeline),
            ("push", self.push, "push", of.push),
            ("events", self.events, "analytics", of.analytics),
            ("later", self.later, "later", of.later),
            ("advisories", self.advisories, "deadletter", of.deadletter),
            ("dlq", self.dlq, "deadletter", of.deadletter),
            ("redrive", self.redrive, "redrive", of.redrive),
        ] {
            let seconds = policy.attempts_seconds_max();
            check(
                limits.age_seconds_max >= seconds,
                &format!(
                    "{stream}.age_seconds_max must be at least {seconds}, the time that consumers.{kind}.attempts_max \
                     ({}) attempts can take: a message that is removed before its last attempt is lost",
                    policy.attempts_max
                ),
            )?;
        }
        Ok(())
    }

    /// The limits of all streams, with the fields' names.
    fn limits(&self) -> [(&'static str, StreamLimits); 9] {
        [
            ("posts", self.posts),
            ("slices", self.slices),
            ("timeline", self.timeline),
            ("push", self.push),
            ("events", self.events),
            ("later", self.later),
            ("advisories", self.advisories),
            ("dlq", self.dlq),
            ("redrive", self.redrive),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_would_lose_messages_is_refused_by_field() {
        let refused = |change: fn(&mut TopologyConfig)| {
            let mut config = TopologyConfig::default();
            change(&mut config);
            let error = config.validate().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            error.to_string()
        };
        let starts = |change, field: &str| {
            let text = refused(change);
            assert!(text.starts_with(&format!("{field} ")), "{text}");
        };
        starts(|c| c.replicas = 2, "replicas");
        starts(|c| c.push.bytes_max = 0, "push.bytes_max");
        starts(|c| c.redrive.age_seconds_max = 100, "redrive.age_seconds_max");
        starts(|c| c.slices.age_seconds_max = 3_600, "slices.age_seconds_max");
        starts(|c| c.dlq.age_seconds_max = 3_600, "dlq.age_seconds_max");
        starts(
            |c| c.consumers.archive.attempts_max = 1,
            "consumers.archive.attempts_max",
        );
        starts(
            |c| c.consumers.push.fault_attempts_max = 0,
            "consumers.push.fault_attempts_max",
        );
        starts(|c| c.consumers.push.hold_ms_max = 0, "consumers.push.hold_ms_max");
        starts(
            |c| c.consumers.fanout.retry.delay_ms_base = 60_000,
            "consumers.fanout.retry.delay_ms_max",
        );
        starts(
            |c| c.consumers.timeline.ack_wait_seconds = 0,
            "consumers.timeline.ack_wait_seconds",
        );
        assert!(
            refused(|c| c.consumers.deadletter.attempts_max = 30_000).contains(
                "advisories.age_seconds_max must be at least 900000, the time that consumers.deadletter"
            )
        );
        assert!(
            refused(|c| c.consumers.analytics.retry.delay_ms_max = 3_600_000)
                .contains("posts.age_seconds_max must be at least 3600000")
        );
        assert!(
            refused(|c| c.dedupe_window_seconds = 10 * DAY)
                .contains("age_seconds_max must be at least dedupe")
        );
    }

    #[test]
    fn all_streams_count() {
        let config = TopologyConfig::default();
        assert_eq!(
            config.limits().len(),
            super::super::Topology::new(&config).unwrap().streams.len()
        );
        assert_eq!(
            config.bytes_max(),
            (4_096 + 256 + 2_048 + 1_024 + 1_024 + 256 + 128 + 1_024 + 512) * MIB
        );
    }
}
