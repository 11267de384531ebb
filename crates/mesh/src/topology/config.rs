//! Configuration of the streams and consumers.

use serde::{Deserialize, Serialize};

use super::policy::ConsumerPolicies;
use crate::error::{Error, ErrorKind, Result};

const DAY: u64 = 24 * 60 * 60;
const MIB: u64 = 1024 * 1024;

/// Maximum of `age_seconds_max`: 100 years. JetStream counts an age in nanoseconds, in 63 bits.
const AGE_SECONDS_MAX: u64 = 100 * 365 * DAY;

/// Size and age limits of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamLimits {
    /// Maximum age of a message, seconds; must exceed the time of all its attempts; at most 100 years. Acknowledged
    /// messages are retained too, because a dead letter copies its payload from the stream.
    pub age_seconds_max: u64,
    /// Capacity, bytes, JetStream's overhead included; at least 1 MiB, less than 8 EiB. A full stream refuses publishes
    /// ([`ErrorKind::Full`]). The server reserves the capacity when it creates the stream: all streams together must
    /// fit into its `max_file_store` (default: three quarters of the free disk space).
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

/// Configuration of the streams and consumers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopologyConfig {
    /// Replicas of each stream: 1, 3 or 5.
    pub replicas: usize,
    /// Time in which a message id is deduplicated, seconds; at least 1. The server keeps the ids in memory.
    pub dedupe_window_seconds: u64,
    /// Policies of the consumers.
    pub consumers: ConsumerPolicies,
    /// POSTS: at 100,000 posts a day of 1 KB, a week is 0.7 GiB.
    pub posts: StreamLimits,
    /// SLICES: one message of 150 bytes per 65,536 followers of an author.
    pub slices: StreamLimits,
    /// TIMELINE: 100 million deliveries are about 100,000 chunks and 0.3 GiB; a backlog of 10 million is 30 to 60 MB.
    pub timeline: StreamLimits,
    /// PUSH: chunks of up to 512 recipients with notifications on.
    pub push: StreamLimits,
    /// EVENTS: about 60 bytes per settled chunk, and 250 bytes per message of up to 64 chunks.
    pub events: StreamLimits,
    /// LATER, the delay queue: push chunks with recipients that wait, backfills that wait, and messages with a long
    /// retry delay, 1 KB each. Publishers enforce the size limit.
    pub later: StreamLimits,
    /// ADVISORIES: one message of 400 bytes per terminated message.
    pub advisories: StreamLimits,
    /// DLQ: a dead letter is the message and 500 bytes of metadata; for a full timeline chunk, 12 KB.
    pub dlq: StreamLimits,
    /// REDRIVE: redriven messages.
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
    /// Capacity of all streams together, bytes.
    pub fn bytes_max(&self) -> u64 {
        self.limits()
            .iter()
            .fold(0, |sum, (_, limits)| sum.saturating_add(limits.bytes_max))
    }

    /// Checks the bounds, and that every stream retains a message until its last attempt.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] starts with the field and ends with its value.
    pub fn validate(&self) -> Result<()> {
        let check = |good: bool, field: &str, expected: &str, value: u64| {
            if good {
                Ok(())
            } else {
                let message = format!("{field} must be {expected}, is {value}");
                Err(Error::new(ErrorKind::Invalid, message))
            }
        };
        check(
            [1, 3, 5].contains(&self.replicas),
            "replicas",
            "1, 3 or 5",
            self.replicas as u64,
        )?;
        check(
            self.dedupe_window_seconds >= 1,
            "dedupe_window_seconds",
            "at least 1",
            self.dedupe_window_seconds,
        )?;
        self.consumers.validate()?;
        for (name, limits) in self.limits() {
            let (bytes, age) = (limits.bytes_max, limits.age_seconds_max);
            check(
                bytes >= MIB && i64::try_from(bytes).is_ok(),
                &format!("{name}.bytes_max"),
                &format!("{MIB} (1 MiB) to {} (63 bits)", i64::MAX),
                bytes,
            )?;
            check(
                age <= AGE_SECONDS_MAX,
                &format!("{name}.age_seconds_max"),
                &format!("at most {AGE_SECONDS_MAX} (100 years)"),
                age,
            )?;
            check(
                age >= self.dedupe_window_seconds,
                &format!("{name}.age_seconds_max"),
                &format!("at least dedupe_window_seconds ({})", self.dedupe_window_seconds),
                age,
            )?;
        }
        let policies = &self.consumers;
        for (stream, limits, kind, policy) in [
            ("posts", self.posts, "archive", policies.archive),
            ("posts", self.posts, "analytics", policies.analytics),
            ("posts", self.posts, "fanout", policies.fanout),
            ("slices", self.slices, "slice", policies.slice),
            ("timeline", self.timeline, "timeline", policies.timeline),
            ("push", self.push, "push", policies.push),
            ("events", self.events, "analytics", policies.analytics),
            ("later", self.later, "later", policies.later),
            ("advisories", self.advisories, "deadletter", policies.deadletter),
            ("dlq", self.dlq, "deadletter", policies.deadletter),
            ("redrive", self.redrive, "redrive", policies.redrive),
        ] {
            let seconds = policy.attempts_seconds_max();
            check(
                limits.age_seconds_max >= seconds,
                &format!("{stream}.age_seconds_max"),
                &format!(
                    "at least {seconds}, the maximum time of consumers.{kind}.attempts_max ({}) attempts (a message \
                     that is removed before its last attempt is lost)",
                    policy.attempts_max
                ),
                limits.age_seconds_max,
            )?;
        }
        Ok(())
    }

    /// Limits of all streams, with the names of their fields.
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
    fn an_invalid_configuration_is_refused_with_its_field() {
        let refused = |change: fn(&mut TopologyConfig)| {
            let mut config = TopologyConfig::default();
            change(&mut config);
            let error = config.validate().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            error.to_string()
        };
        assert_eq!(refused(|c| c.replicas = 2), "replicas must be 1, 3 or 5, is 2");
        assert_eq!(
            refused(|c| c.slices.age_seconds_max = u64::MAX),
            "slices.age_seconds_max must be at most 3153600000 (100 years), is 18446744073709551615"
        );
        assert!(refused(|c| c.dlq.bytes_max = 1 << 63).ends_with("(63 bits), is 9223372036854775808"));
        assert!(refused(|c| c.consumers.push.hold_ms_max = 0).ends_with("must be at least 1, is 0"));
        let starts = |change, field: &str| {
            let text = refused(change);
            assert!(text.starts_with(&format!("{field} ")), "{text}");
        };
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
                "advisories.age_seconds_max must be at least 900000, the maximum time of consumers.deadletter"
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
    fn the_limits_cover_all_streams() {
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
