//! What can be set.

use herald_runtime::lanes::PerLane;
use serde::{Deserialize, Serialize};

/// The timeline service's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Chunks worked on at one time, by lane; 1 to 32,768 each. A chunk waits for the store's next flush, so this many chunks are what one
    /// flush can hold.
    pub chunks_in_flight_max: PerLane,
    /// Posts that a new follow brings, newest first; 0 to 800.
    pub backfill_posts_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            chunks_in_flight_max: PerLane {
                high: 2_048,
                normal: 2_048,
                low: 512,
            },
            backfill_posts_max: 20,
        }
    }
}

impl Config {
    /// Says what is wrong, if anything is.
    pub fn validate(&self) -> Result<(), String> {
        self.chunks_in_flight_max
            .validate("timeline.chunks_in_flight_max", 32_768)?;
        if self.backfill_posts_max > 800 {
            return Err(format!(
                "timeline.backfill_posts_max must be 0 to 800, is {}",
                self.backfill_posts_max
            ));
        }
        Ok(())
    }
}
