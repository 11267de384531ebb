//! A count per lane.

use herald_model::Lane;
use serde::{Deserialize, Serialize};

/// A count per lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerLane {
    /// Count of the high lane.
    pub high: usize,
    /// Count of the normal lane.
    pub normal: usize,
    /// Count of the low lane.
    pub low: usize,
}

impl PerLane {
    /// Count of a lane.
    pub fn of(self, lane: Lane) -> usize {
        match lane {
            Lane::High => self.high,
            Lane::Normal => self.normal,
            Lane::Low => self.low,
        }
    }
}
