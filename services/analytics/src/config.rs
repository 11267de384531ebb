//! Configuration.

use std::path::PathBuf;
use std::time::Duration;

use herald_store::LEASE_DURATION;
use serde::{Deserialize, Serialize};

/// The analytics service's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Directory of the Parquet files, unless another object store is given; created if it is missing. All instances must
    /// have the same one, on a shared volume: they delete the uncounted files of an instance that died.
    pub dir: PathBuf,
    /// Approximate maximum number of rows in a batch; 1 to 1,000,000. A batch is also full when it has half of the
    /// messages that may be in flight.
    pub batch_rows_max: usize,
    /// Maximum time that a message waits for its batch to fill, milliseconds; 10 to 600,000. A longer time creates
    /// fewer and larger files, and delays the totals.
    pub batch_age_ms_max: u64,
    /// Maximum number of messages of POSTS in memory, including those being written; 2 to 32,768, and at most the
    /// consumer's `ack_pending_max`. A quarter as many redriven messages are in memory beside them. A post has up to
    /// 106 KB.
    pub posts_in_flight_max: usize,
    /// Maximum number of messages of EVENTS in memory, with the same bounds. An event has up to 64 rows of about 150
    /// bytes.
    pub events_in_flight_max: usize,
    /// Time without an answer of the store, or without a sign of life, after which other instances delete the uncounted
    /// files of this one, seconds; 2 to 300.
    pub lease_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("herald-data/analytics"),
            batch_rows_max: 10_000,
            batch_age_ms_max: 5_000,
            posts_in_flight_max: 2_048,
            events_in_flight_max: 8_192,
            lease_seconds: LEASE_DURATION.as_secs(),
        }
    }
}

impl Config {
    /// Checks all bounds; the error names the first invalid key.
    pub fn validate(&self) -> Result<(), String> {
        if self.dir.as_os_str().is_empty() {
            return Err("analytics.dir must not be empty".into());
        }
        herald_runtime::bounds!("analytics", self, {
            batch_rows_max: 1..=1_000_000,
            batch_age_ms_max: 10..=600_000,
            posts_in_flight_max: 2..=32_768,
            events_in_flight_max: 2..=32_768,
            lease_seconds: 2..=300,
        });
        Ok(())
    }

    pub(crate) fn lease_duration(&self) -> Duration {
        Duration::from_secs(self.lease_seconds)
    }

    pub(crate) fn batch_age_max(&self) -> Duration {
        Duration::from_millis(self.batch_age_ms_max)
    }

    /// Maximum number of messages of a batch: at most half of the messages in flight, so that the next batch can fill
    /// while one is written.
    pub(crate) fn batch_messages(&self, in_flight_max: usize) -> usize {
        self.batch_rows_max.min(in_flight_max / 2).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_out_of_bounds_is_named() {
        assert_eq!(Config::default().validate(), Ok(()));
        let config = Config {
            batch_rows_max: 0,
            ..Config::default()
        };
        assert!(
            config
                .validate()
                .unwrap_err()
                .starts_with("analytics.batch_rows_max must be 1 to")
        );
    }

    #[test]
    fn a_batch_has_at_most_half_of_the_messages_in_flight() {
        let config = Config::default();
        assert_eq!(config.batch_messages(8_192), 4_096);
        assert_eq!(config.batch_messages(32_768), 10_000);
        assert_eq!(config.batch_messages(1), 1);
    }
}
