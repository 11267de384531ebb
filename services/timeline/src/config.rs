//! What can be set.

use herald_model::Lane;
use serde::{Deserialize, Serialize};

/// The timeline service's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Chunks worked on at one time, by lane. A chunk waits for the store's next flush, so this many chunks are what one
    /// flush can hold.
    pub chunks_in_flight_max: PerLane,
    /// Posts that a new follow brings, newest first; 0 to 800.
    pub backfill_posts_max: usize,
}

/// A number by lane; 1 to 65,536 each.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerLane {
    /// In the high lane.
    pub high: usize,
    /// In the normal lane.
    pub normal: usize,
    /// In the low lane.
    pub low: usize,
}

impl PerLane {
    /// The number of one lane.
    pub fn of(self, lane: Lane) -> usize {
        match lane {
            Lane::High => self.high,
            Lane::Normal => self.normal,
            Lane::Low => self.low,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self { chunks_in_flight_max: PerLane { high: 2_048, normal: 2_048, low: 512 }, backfill_posts_max: 20 }
    }
}

impl Config {
    /// Says what is wrong, if anything is.
    pub fn validate(&self) -> Result<(), String> {
        for lane in Lane::ALL {
            let value = self.chunks_in_flight_max.of(lane);
            if !(1..=65_536).contains(&value) {
                return Err(format!("timeline.chunks_in_flight_max.{lane} must be 1 to 65,536, is {value}"));
            }
        }
        if self.backfill_posts_max > 800 {
            return Err(format!("timeline.backfill_posts_max must be 0 to 800, is {}", self.backfill_posts_max));
        }
        Ok(())
    }
}
