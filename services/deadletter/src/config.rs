//! What can be set.

use serde::{Deserialize, Serialize};

/// The deadletter service's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Advisories and dead letters handled at a time, each; 1 to 32,768. A dead letter carries what the message carried, up to
    /// the broker's largest message.
    pub in_flight_max: usize,
    /// Dead letters of one redrive that may be on their way at a time; 256 to 65,536. More of them make a redrive faster, and
    /// its stop later.
    pub redrive_in_flight_max: u64,
    /// Redrives that may run at a time; 1 to 1,000.
    pub redrives_max: usize,
    /// The audit that goes on all the time.
    pub continuous_audit: ContinuousAudit,
}

/// A small audit of the newest posts, every now and then, told as metrics; `herald audit` is the thorough one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContinuousAudit {
    /// From one round to the next, seconds; 1 to 86,400. 0: no rounds.
    pub interval_seconds: u64,
    /// How far back a round goes, seconds; 60 to 86,400. A round reads what the ledger knows of each post of that time.
    pub window_seconds: u64,
    /// How much of the time a round works, percent; 1 to 100. Less is gentler to posts, and makes a round take longer.
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
            continuous_audit: ContinuousAudit::default(),
        }
    }
}

impl Config {
    /// Says what is wrong, if anything is.
    pub fn validate(&self) -> Result<(), String> {
        herald_runtime::bounds!("deadletter", self, {
            in_flight_max: 1..=32_768,
            redrive_in_flight_max: 256..=65_536,
            redrives_max: 1..=1_000,
            continuous_audit.interval_seconds: 0..=86_400,
            continuous_audit.window_seconds: 60..=86_400,
            continuous_audit.work_percent_max: 1..=100,
        });
        Ok(())
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
