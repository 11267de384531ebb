//! What can be set.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The analytics service's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the Parquet files go, when no other object store is given; made when it isn't there.
    pub dir: PathBuf,
    /// Rows that are written together, about, at most; 1 to 1,000,000. Fewer are when half of the messages that may be in
    /// flight wait.
    pub batch_rows_max: usize,
    /// How long a message waits for others, milliseconds; 10 to 600,000. Longer makes fewer and larger files, and totals
    /// that follow later.
    pub batch_age_ms_max: u64,
    /// Messages of POSTS in memory at one time, those being written included; 2 to 32,768, and no more than the
    /// consumer may have unacknowledged; a quarter as many redriven ones beside them. A post is up to 106 KB.
    pub posts_in_flight_max: usize,
    /// Messages of EVENTS in memory at one time, likewise. An event has up to 64 rows of some 150 bytes.
    pub events_in_flight_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("herald-data/analytics"),
            batch_rows_max: 10_000,
            batch_age_ms_max: 5_000,
            posts_in_flight_max: 2_048,
            events_in_flight_max: 8_192,
        }
    }
}

impl Config {
    /// Says what is wrong, if anything is.
    pub fn validate(&self) -> Result<(), String> {
        if self.dir.as_os_str().is_empty() {
            return Err("analytics.dir must not be empty".into());
        }
        herald_runtime::bounds!("analytics", self, {
            batch_rows_max: 1..=1_000_000,
            batch_age_ms_max: 10..=600_000,
            posts_in_flight_max: 2..=32_768,
            events_in_flight_max: 2..=32_768,
        });
        Ok(())
    }

    pub(crate) fn batch_age_max(&self) -> Duration {
        Duration::from_millis(self.batch_age_ms_max)
    }

    /// Of how many messages to write the rows together. While they are written, as many others gather: a batch that waited
    /// for more than half would wait for its own acknowledgements.
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
    fn a_batch_never_waits_for_what_can_not_come() {
        let config = Config::default();
        assert_eq!(config.batch_messages(8_192), 4_096);
        assert_eq!(config.batch_messages(32_768), 10_000);
        assert_eq!(config.batch_messages(1), 1);
    }
}
