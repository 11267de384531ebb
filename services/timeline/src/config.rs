//! Configuration of the service.

use herald_mesh::PerLane;
use serde::{Deserialize, Serialize};

/// The timeline service's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Chunks in flight per lane; 1 to 32,768 each. A chunk waits for the next group commit of the store, so this
    /// limits the chunks per group commit.
    pub chunks_in_flight_max: PerLane,
    /// Redriven chunks in flight, all lanes together; 1 to 32,768.
    pub redrive_chunks_in_flight_max: usize,
    /// The first attempt that bisects a chunk after a permanent error to isolate the recipients that cause it; 1 to
    /// 1,000. Above the consumer's `fault_attempts_max`, chunks are never bisected.
    pub isolate_attempts_min: u64,
    /// Newest posts of the author delivered to a new follower; 0 to 800.
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
    /// Checks the bounds; the error names the first setting out of bounds.
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
