//! Configuration of the service.

use herald_mesh::{Gate, PerLane};
use serde::{Deserialize, Serialize};

/// The fanout service's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Recipients per push chunk, at most; 1 to 65,536. A push chunk is the unit of retry.
    pub push_chunk_recipients_max: u32,
    /// Followers expanded per message; the others become the next slice; 1,024 to 1,048,576. A timeline chunk is one
    /// page of the graph service (`graph.export_page_followers`).
    pub slice_recipients_max: u32,
    /// Posts, and slices, in flight per lane; 1 to 4,096 each. The ratio of the lanes sets their priority.
    pub posts_in_flight_max: PerLane,
    /// Redriven posts, and slices, in flight, all lanes together; 1 to 4,096.
    pub redrive_in_flight_max: usize,
    /// When a lane is paused.
    pub gate: Gate,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            push_chunk_recipients_max: 512,
            slice_recipients_max: 65_536,
            posts_in_flight_max: PerLane {
                high: 128,
                normal: 64,
                low: 16,
            },
            redrive_in_flight_max: 8,
            gate: Gate::default(),
        }
    }
}

impl Config {
    /// Checks the bounds; the error names the first setting out of bounds.
    pub fn validate(&self) -> Result<(), String> {
        herald_runtime::bounds!("fanout", self, {
            push_chunk_recipients_max: 1..=65_536,
            slice_recipients_max: 1_024..=1_048_576,
            posts_in_flight_max.high: 1..=4_096,
            posts_in_flight_max.normal: 1..=4_096,
            posts_in_flight_max.low: 1..=4_096,
            redrive_in_flight_max: 1..=4_096,
            gate.pending_chunks_max: 1..,
            gate.interval_ms: 10..=60_000,
        });
        Ok(())
    }
}
