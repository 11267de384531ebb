//! A number for each lane.

use herald_model::Lane;
use serde::{Deserialize, Serialize};

/// How many of something each lane has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
