//! Configuration of the service.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::Role;

/// The scaler's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The time in which pending work shall be done, of triggers without `targetSeconds` and of the metrics; seconds, 1 to
    /// 3,600. Default: 5.
    pub target_seconds: u64,
    /// Time after the last arrival of a message in which a role stays active, so that workers that keep up are not taken
    /// for idle; seconds, 1 to 86,400. Default: 60.
    pub keep_active_seconds: u64,
    /// Interval at which the consumers are read, milliseconds; 100 to 10,000. Default: 1,000.
    pub read_interval_ms: u64,
    /// Interval at which messages of a consumer are read again to learn their number of deliveries, milliseconds; 100 to
    /// 600,000. A backlog that doubles is sampled at once. Default: 5,000.
    pub sample_interval_ms: u64,
    /// Messages of a consumer that are read for this; 1 to 1,024. Default: 32.
    pub sample_messages_max: u64,
    /// Assumed recipients of a post that fan-out has not expanded: no message has their number; 1 to 10,000,000. Default:
    /// 1,000.
    pub post_recipients: u64,
    /// Assumed rates of one process, until they are measured.
    pub rates: Rates,
    /// How far a measured rate may be from the assumed one: at most this many times, at least this part of it; 1 (never
    /// measured) to 100. Default: 4.
    pub rate_factor_max: u64,
    /// Maximum of the reported work, seconds; 60 to 31,536,000. Default: 86,400.
    pub work_seconds_max: u64,
}

/// What one process of a role does in a second, before a rate is measured; 1 to 1,000,000,000 each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rates {
    /// Recipients that fan-out expands. Default: 100,000.
    pub fanout: u64,
    /// Timeline entries. Default: 100,000.
    pub timeline: u64,
    /// Recipients of pushes. Default: 2,000.
    pub push: u64,
    /// Posts and deletions. Default: 5,000.
    pub archive: u64,
    /// Posts and settled chunks. Default: 20,000.
    pub analytics: u64,
}

impl Rates {
    pub(crate) fn of(&self, role: Role) -> f64 {
        let rate = match role {
            Role::Fanout => self.fanout,
            Role::Timeline => self.timeline,
            Role::Push => self.push,
            Role::Archive => self.archive,
            Role::Analytics => self.analytics,
        };
        rate as f64
    }
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            fanout: 100_000,
            timeline: 100_000,
            push: 2_000,
            archive: 5_000,
            analytics: 20_000,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            target_seconds: 5,
            keep_active_seconds: 60,
            read_interval_ms: 1_000,
            sample_interval_ms: 5_000,
            sample_messages_max: 32,
            post_recipients: 1_000,
            rates: Rates::default(),
            rate_factor_max: 4,
            work_seconds_max: 86_400,
        }
    }
}

impl Config {
    /// Checks the bounds; the error names the first setting out of bounds.
    pub fn validate(&self) -> Result<(), String> {
        herald_runtime::bounds!("scaler", self, {
            target_seconds: 1..=3_600,
            keep_active_seconds: 1..=86_400,
            read_interval_ms: 100..=10_000,
            sample_interval_ms: 100..=600_000,
            sample_messages_max: 1..=1_024,
            post_recipients: 1..=10_000_000,
            rates.fanout: 1..=1_000_000_000,
            rates.timeline: 1..=1_000_000_000,
            rates.push: 1..=1_000_000_000,
            rates.archive: 1..=1_000_000_000,
            rates.analytics: 1..=1_000_000_000,
            rate_factor_max: 1..=100,
            work_seconds_max: 60..=31_536_000,
        });
        Ok(())
    }

    pub(crate) fn target(&self) -> f64 {
        self.target_seconds as f64
    }

    pub(crate) fn read_interval(&self) -> Duration {
        Duration::from_millis(self.read_interval_ms)
    }

    pub(crate) fn sample_interval(&self) -> Duration {
        Duration::from_millis(self.sample_interval_ms)
    }

    pub(crate) fn keep_active(&self) -> Duration {
        Duration::from_secs(self.keep_active_seconds)
    }
}
