//! Configuration.

use serde::{Deserialize, Serialize};

/// The archive service's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Maximum number of posts and deletions in one commit; 1 to 10,000.
    pub batch_max: usize,
    /// Maximum number of messages in flight; 1 to 32,768.
    pub in_flight_max: usize,
    /// Maximum number of redriven messages in flight; 1 to 32,768.
    pub redrive_in_flight_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            batch_max: 256,
            in_flight_max: 512,
            redrive_in_flight_max: 64,
        }
    }
}

impl Config {
    /// Checks all bounds; the error names the first invalid key.
    pub fn validate(&self) -> Result<(), String> {
        herald_runtime::bounds!("archive", self, {
            batch_max: 1..=10_000,
            in_flight_max: 1..=32_768,
            redrive_in_flight_max: 1..=32_768,
        });
        Ok(())
    }
}
