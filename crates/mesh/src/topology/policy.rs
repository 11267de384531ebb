//! How often, how long and how many at a time, by consumer.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::retry::RetryDelay;

/// How the consumers of one kind treat their messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsumerPolicy {
    /// How long a worker may be silent about a message before another gets it, seconds; at least 1. Running handlers
    /// extend it by themselves.
    pub ack_wait_seconds: u64,
    /// Messages of one consumer that may be delivered and not acknowledged, over all its workers; more than all of
    /// them take at a time, and at least 1.
    pub ack_pending_max: u32,
    /// Attempts a message gets before it is given up; at least 2.
    pub attempts_max: u32,
    /// Attempts after which one that ends in a fault, which waiting doesn't mend, is the last; at least 1.
    pub fault_attempts_max: u32,
    /// The longest that a message may wait for its next attempt in the consumer's hands, milliseconds; at least 1. One
    /// that waits there holds a place in `ack_pending_max`. For a longer wait it moves to the stream LATER, and comes back
    /// as a new message. Only messages of push do, the others are always held: their waits are short, and a sequence in
    /// POSTS is a post's id.
    pub hold_ms_max: u64,
    /// The delays between attempts.
    pub retry: RetryDelay,
}

impl ConsumerPolicy {
    /// What holds for most consumers. A store that is down for an hour kills no message: retries wait 15 s on average
    /// once the delay is at its maximum, so an hour takes some 250 of the 1,000 attempts.
    const PATIENT: Self = Self {
        ack_wait_seconds: 30,
        ack_pending_max: 8_192,
        attempts_max: 1_000,
        fault_attempts_max: 10,
        hold_ms_max: 30_000,
        retry: RetryDelay::DEFAULT,
    };

    /// The longest that all attempts can take, seconds: that the worker of each dies, or that each waits for its longest
    /// delay.
    pub fn attempts_seconds_max(&self) -> u64 {
        let attempt = self.ack_wait_seconds.max(self.retry.delay_ms_max.div_ceil(1_000));
        u64::from(self.attempts_max).saturating_mul(attempt)
    }

    fn validate(&self, name: &str) -> Result<()> {
        for (good, message) in [
            (self.ack_wait_seconds >= 1, "ack_wait_seconds must be at least 1"),
            (self.ack_pending_max >= 1, "ack_pending_max must be at least 1"),
            (self.attempts_max >= 2, "attempts_max must be at least 2"),
            (
                self.fault_attempts_max >= 1,
                "fault_attempts_max must be at least 1",
            ),
            (self.hold_ms_max >= 1, "hold_ms_max must be at least 1"),
            (
                self.retry.delay_ms_base >= 1,
                "retry.delay_ms_base must be at least 1",
            ),
            (
                self.retry.delay_ms_max >= self.retry.delay_ms_base,
                "retry.delay_ms_max must be at least retry.delay_ms_base",
            ),
        ] {
            if !good {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("consumers.{name}.{message}"),
                ));
            }
        }
        Ok(())
    }
}

/// The policies of all consumers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsumerPolicies {
    /// Of `archive`.
    pub archive: ConsumerPolicy,
    /// Of `analytics-posts` and `analytics-events`.
    pub analytics: ConsumerPolicy,
    /// Of `fanout-{lane}`.
    pub fanout: ConsumerPolicy,
    /// Of `slice-{lane}`.
    pub slice: ConsumerPolicy,
    /// Of `timeline-{lane}`.
    pub timeline: ConsumerPolicy,
    /// Of `push-{lane}`. By default 20 attempts, some four minutes: a push that comes late is worth little.
    pub push: ConsumerPolicy,
    /// Of `later`. By default 20,000 attempts, faults too: what has waited long enough has to get back to its stream, full
    /// as that may be.
    pub later: ConsumerPolicy,
    /// Of `redrive-{kind}`. By default 5 attempts: what was given up once goes back to the dead letters soon.
    pub redrive: ConsumerPolicy,
    /// Of `deadletter` and `dead-letters`. By default 20,000 attempts, faults too: nobody makes a dead letter of what is
    /// given up here, so it goes on for about as long as ADVISORIES holds a message.
    pub deadletter: ConsumerPolicy,
}

impl Default for ConsumerPolicies {
    fn default() -> Self {
        let patient = ConsumerPolicy::PATIENT;
        let stubborn = ConsumerPolicy {
            attempts_max: 20_000,
            fault_attempts_max: 20_000,
            ..patient
        };
        Self {
            archive: patient,
            analytics: patient,
            fanout: patient,
            slice: patient,
            timeline: patient,
            push: ConsumerPolicy {
                attempts_max: 20,
                ..patient
            },
            later: stubborn,
            redrive: ConsumerPolicy {
                attempts_max: 5,
                ..patient
            },
            deadletter: stubborn,
        }
    }
}

impl ConsumerPolicies {
    /// The same change to each of them.
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

    /// Checks the bounds. Names the field.
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
    /// Attempts after which one that ends in a fault is the last.
    pub fault_attempts_max: u32,
    /// Messages that may be delivered and not acknowledged, over all workers.
    pub ack_pending_max: u32,
    /// The delays between attempts.
    pub retry: RetryDelay,
    /// Where its messages wait when they wait long; without it they are held.
    pub waits: Option<Waits>,
}

/// How long waits are spent in the stream LATER.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// The longest that a message is held instead.
    pub hold_max: Duration,
    /// The longest wait; a longer one is cut to this. Half of the time that the stream keeps a message.
    pub wait_max: Duration,
    /// Bytes that may wait; while there are more, messages are held. A stream with schedules can't refuse what is too much,
    /// it could only drop the oldest, so those who publish to it keep the limit.
    pub bytes_max: u64,
}

impl ConsumerSpec {
    pub(super) fn new(stream: &str, name: &str, filter: Option<String>, policy: &ConsumerPolicy) -> Self {
        Self {
            stream: stream.into(),
            name: name.into(),
            filter,
            ack_wait: Duration::from_secs(policy.ack_wait_seconds),
            attempts_max: policy.attempts_max,
            fault_attempts_max: policy.fault_attempts_max,
            ack_pending_max: policy.ack_pending_max,
            retry: policy.retry,
            waits: None,
        }
    }
}
