//! Attempts, timeouts and limits per consumer.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::retry::RetryDelay;
use crate::topology::NatsUser;

/// `ack_pending_max` of consumers whose workers have thousands of messages in flight each.
const ACK_PENDING_MANY: u32 = 32_768;

/// Policy of the consumers of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsumerPolicy {
    /// Time without a heartbeat or settlement after which a message is redelivered, seconds; at least 1. A running
    /// handler sends three heartbeats in this time, so it is how long the messages of a killed process wait for another
    /// one. A process that stalls for longer gets competition, which costs work and is harmless otherwise.
    pub ack_wait_seconds: u64,
    /// Time that running handlers have to finish at a shutdown, seconds; at least 1. Then their messages are released.
    pub drain_seconds: u64,
    /// Maximum number of delivered and unacknowledged messages of one consumer, over all its workers; at least 1. Set
    /// it higher than the workers' `in_flight_max` together.
    pub ack_pending_max: u32,
    /// Maximum number of attempts before a message becomes a dead letter; at least 2.
    pub attempts_max: u32,
    /// Maximum number of attempts when the last one fails with a permanent error (fault); at least 1.
    pub fault_attempts_max: u32,
    /// Maximum retry delay for which the consumer holds a message, milliseconds; at least 1. A held message counts
    /// towards `ack_pending_max`. With a longer delay, the message moves to the delay queue (LATER) and returns as a
    /// new message. Applies to PUSH only; other consumers always hold: their delays are short, and a sequence in POSTS
    /// is a post id.
    pub hold_ms_max: u64,
    /// Back-off between attempts.
    pub retry: RetryDelay,
}

impl ConsumerPolicy {
    /// Policy of most consumers. No message becomes a dead letter while a store is down for an hour: the average delay
    /// reaches 15 s, so an hour takes about 250 of the 1,000 attempts.
    const DEFAULT: Self = Self {
        ack_wait_seconds: 5,
        drain_seconds: 30,
        ack_pending_max: 8_192,
        attempts_max: 1_000,
        fault_attempts_max: 10,
        hold_ms_max: 30_000,
        retry: RetryDelay::DEFAULT,
    };

    /// Maximum time of all attempts, seconds: each attempt takes `ack_wait` or the maximum delay, whichever is longer.
    pub fn attempts_seconds_max(&self) -> u64 {
        let attempt = self.ack_wait_seconds.max(self.retry.delay_ms_max.div_ceil(1_000));
        u64::from(self.attempts_max).saturating_mul(attempt)
    }

    fn validate(&self, name: &str) -> Result<()> {
        let retry = self.retry;
        for (field, min, value) in [
            ("ack_wait_seconds", 1, self.ack_wait_seconds),
            ("drain_seconds", 1, self.drain_seconds),
            ("ack_pending_max", 1, self.ack_pending_max.into()),
            ("attempts_max", 2, self.attempts_max.into()),
            ("fault_attempts_max", 1, self.fault_attempts_max.into()),
            ("hold_ms_max", 1, self.hold_ms_max),
            ("retry.delay_ms_base", 1, retry.delay_ms_base),
            ("retry.delay_ms_max", retry.delay_ms_base, retry.delay_ms_max),
        ] {
            if value < min {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("consumers.{name}.{field} must be at least {min}, is {value}"),
                ));
            }
        }
        Ok(())
    }
}

/// Policies of all consumers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsumerPolicies {
    /// Consumer `archive`.
    pub archive: ConsumerPolicy,
    /// Consumers `analytics-posts` and `analytics-events`. Default `ack_wait`: 30 s; they hold thousands of messages for
    /// the 5 s of a batch, and would send a heartbeat for each. Default `ack_pending_max`: 32,768, for four processes.
    pub analytics: ConsumerPolicy,
    /// Consumers `fanout-{lane}`. Default `ack_wait`: 2 s, as for all that is on the way from a post to its readers: the
    /// promises for timelines and pushes hold when a worker dies.
    pub fanout: ConsumerPolicy,
    /// Consumers `slice-{lane}`. Default `ack_wait`: 2 s.
    pub slice: ConsumerPolicy,
    /// Consumers `timeline-{lane}`. Default `ack_wait`: 2 s; `ack_pending_max`: 32,768, for 16 processes.
    pub timeline: ConsumerPolicy,
    /// Consumers `push-{lane}`. Default `ack_wait`: 2 s. A device that fails spends no attempt: it is tried until its
    /// push expires.
    pub push: ConsumerPolicy,
    /// Consumer `later`. Default: `ack_wait` 2 s, 20,000 attempts, also for permanent errors; a due message must return
    /// to its stream even if the stream is full for long.
    pub later: ConsumerPolicy,
    /// Consumers `redrive-{kind}`. Default: 5 attempts; a redriven message that fails again becomes a dead letter soon.
    pub redrive: ConsumerPolicy,
    /// Consumers `deadletter` and `dead-letters`. Default: 20,000 attempts, also for permanent errors; their messages
    /// don't become dead letters, so retries last about as long as ADVISORIES retains a message.
    pub deadletter: ConsumerPolicy,
}

impl Default for ConsumerPolicies {
    fn default() -> Self {
        let default = ConsumerPolicy::DEFAULT;
        let persistent = ConsumerPolicy {
            attempts_max: 20_000,
            fault_attempts_max: 20_000,
            ..default
        };
        // A handler sends a heartbeat each 0.7 s: for a thousand messages in flight, which wait for a store, some 1,500
        // small messages a second.
        let prompt = ConsumerPolicy {
            ack_wait_seconds: 2,
            ..default
        };
        Self {
            archive: default,
            analytics: ConsumerPolicy {
                ack_wait_seconds: 30,
                ack_pending_max: ACK_PENDING_MANY,
                ..default
            },
            fanout: prompt,
            slice: prompt,
            timeline: ConsumerPolicy {
                ack_pending_max: ACK_PENDING_MANY,
                ..prompt
            },
            push: prompt,
            later: ConsumerPolicy {
                ack_wait_seconds: prompt.ack_wait_seconds,
                ..persistent
            },
            redrive: ConsumerPolicy {
                attempts_max: 5,
                ..default
            },
            deadletter: persistent,
        }
    }
}

impl ConsumerPolicies {
    /// Applies a change to each policy.
    #[must_use]
    pub fn each(mut self, change: impl Fn(&mut ConsumerPolicy)) -> Self {
        let Self {
            archive,
            analytics,
            fanout,
            slice,
            timeline,
            push,
            later,
            redrive,
            deadletter,
        } = &mut self;
        for policy in [
            archive, analytics, fanout, slice, timeline, push, later, redrive, deadletter,
        ] {
            change(policy);
        }
        self
    }

    /// Checks the bounds; the error names the field.
    pub(super) fn validate(&self) -> Result<()> {
        self.archive.validate("archive")?;
        self.analytics.validate("analytics")?;
        self.fanout.validate("fanout")?;
        self.slice.validate("slice")?;
        self.timeline.validate("timeline")?;
        self.push.validate("push")?;
        self.later.validate("later")?;
        self.redrive.validate("redrive")?;
        self.deadletter.validate("deadletter")
    }
}

/// One durable pull consumer with explicit acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerSpec {
    /// Stream of the consumer.
    pub stream: String,
    /// Consumer name.
    pub name: String,
    /// Subject filter; `None`: all subjects of the stream.
    pub filter: Option<String>,
    /// Time without a heartbeat or settlement after which a message is redelivered.
    pub ack_wait: Duration,
    /// Time that running handlers have to finish at a shutdown.
    pub drain: Duration,
    /// Maximum number of attempts; the last failed attempt is terminated with its reason.
    pub attempts_max: u32,
    /// Maximum number of attempts when the last one fails with a permanent error.
    pub fault_attempts_max: u32,
    /// Maximum number of delivered and unacknowledged messages, over all workers.
    pub ack_pending_max: u32,
    /// Back-off between attempts.
    pub retry: RetryDelay,
    /// Limits for the delay queue; `None`: the consumer holds messages for any delay.
    pub delay_limits: Option<DelayLimits>,
    /// Users of the NATS server that pull and settle its messages; at least one.
    pub users: &'static [NatsUser],
}

/// When a message uses the delay queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DelayLimits {
    /// Maximum delay of a retry for which the consumer holds a message. [`Duration::MAX`]: retries are always held, and
    /// only a [`Wait`](crate::Wait) uses the delay queue.
    pub hold_max: Duration,
    /// Maximum delay in the delay queue; a longer delay is cut. Half of the stream's maximum age.
    pub delay_max: Duration,
    /// Maximum size of the delay queue, bytes; above it, consumers hold their messages. Publishers enforce the limit: a
    /// stream with schedules can't refuse messages, it would drop the oldest.
    pub bytes_max: u64,
}

impl ConsumerSpec {
    pub(super) fn new(
        stream: &str,
        name: &str,
        filter: Option<String>,
        policy: &ConsumerPolicy,
        users: &'static [NatsUser],
    ) -> Self {
        Self {
            stream: stream.into(),
            name: name.into(),
            filter,
            ack_wait: Duration::from_secs(policy.ack_wait_seconds),
            drain: Duration::from_secs(policy.drain_seconds),
            attempts_max: policy.attempts_max,
            fault_attempts_max: policy.fault_attempts_max,
            ack_pending_max: policy.ack_pending_max,
            retry: policy.retry,
            delay_limits: None,
            users,
        }
    }
}
