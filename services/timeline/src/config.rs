//! What can be set.

use herald_mesh::PerLane;
use serde::{Deserialize, Serialize};

/// The timeline service's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Chunks worked on at one time, by lane; 1 to 32,768 each. A chunk waits for the store's next flush, so this many chunks are what one
    /// flush can hold.
    pub chunks_in_flight_max: PerLane,
    /// Redriven chunks worked on at one time, of all lanes; 1 to 32,768. They wait for the same flushes.
    pub redrive_chunks_in_flight_max: usize,
    /// From which attempt on a chunk that fails by a fault is done part by part, to find out for whom it fails; 1 to
    /// 1,000. Later than the consumer's `fault_attempts_max`: never.
    pub isolate_attempts_min: u64,
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
            redrive_chunks_in_flight_max: 2_048,
            isolate_attempts_min: 3,
            backfill_posts_max: 20,
        }
    }
}

impl Config {
    /// Says what is wrong, if anything is.
    pub fn validate(&self) -> Result<(), String> {
        herald_runtime::bounds!("timeline", self, {
            chunks_in_flight_max.high: 1..=32_768,
            chunks_in_flight_max.normal: 1..=32_768,
            chunks_in_flight_max.low: 1..=32_768,
            redrive_chunks_in_flight_max: 1..=32_768,
            isolate_attempts_min: 1..=1_000,
            backfill_posts_max: 0..=800,
        });
        Ok(())
    }
}
