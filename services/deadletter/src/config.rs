//! Configuration.

use std::time::Duration;

use herald_store::LEASE_DURATION;
use serde::{Deserialize, Serialize};

/// The deadletter service's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Advisories handled concurrently, and DLQ entries handled concurrently; 1 to 32,768. An entry contains the
    /// payload of its message, up to the broker's `max_payload`.
    pub in_flight_max: usize,
    /// Dead letters of one redrive in flight; 256 to 65,536. A higher value makes a redrive faster and its cancellation
    /// slower.
    pub redrive_in_flight_max: u64,
    /// Redrives and discards that run concurrently; 1 to 1,000. Another redrive is refused.
    pub redrives_max: usize,
    /// Time without an answer of the store, or without a sign of life, after which another instance takes over redrives,
    /// the continuous audit and retention, seconds; 2 to 300.
    pub lease_seconds: u64,
    /// The continuous audit.
    pub continuous_audit: ContinuousAudit,
}

/// A periodic audit of recent posts, reported as metrics. It skips the timelines; `herald audit` checks them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContinuousAudit {
    /// Interval between two rounds, seconds; 1 to 86,400. 0 disables the continuous audit.
    pub interval_seconds: u64,
    /// Age of the oldest post that a round audits, seconds; 60 to 86,400. A round reads the ledger rows of each post.
    pub window_seconds: u64,
    /// Share of a round's time spent working, percent; 1 to 100. A lower value loads the store less and makes a round
    /// longer.
    pub work_percent_max: u8,
}

impl Default for ContinuousAudit {
    fn default() -> Self {
        Self {
            interval_seconds: 60,
            window_seconds: 600,
            work_percent_max: 10,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            in_flight_max: 512,
            redrive_in_flight_max: 16_384,
            redrives_max: 16,
            lease_seconds: LEASE_DURATION.as_secs(),
            continuous_audit: ContinuousAudit::default(),
        }
    }
}

impl Config {
    /// Checks the bounds of each value.
    ///
    /// # Errors
    /// Names the first value that is out of bounds, with its bounds.
    pub fn validate(&self) -> Result<(), String> {
        herald_runtime::bounds!("deadletter", self, {
            in_flight_max: 1..=32_768,
            redrive_in_flight_max: 256..=65_536,
            redrives_max: 1..=1_000,
            lease_seconds: 2..=300,
            continuous_audit.interval_seconds: 0..=86_400,
            continuous_audit.window_seconds: 60..=86_400,
            continuous_audit.work_percent_max: 1..=100,
        });
        Ok(())
    }

    pub(crate) fn lease_duration(&self) -> Duration {
        Duration::from_secs(self.lease_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_out_of_bounds_is_named() {
        assert_eq!(Config::default().validate(), Ok(()));
        let config = Config {
            redrives_max: 0,
            ..Config::default()
        };
        assert!(
            config
                .validate()
                .unwrap_err()
                .starts_with("deadletter.redrives_max must be 1 to")
        );
    }
}
