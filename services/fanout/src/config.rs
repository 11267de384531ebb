//! What can be set.

use herald_mesh::PerLane;
use serde::{Deserialize, Serialize};

/// The fanout service's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Recipients in one push chunk, at most; 1 to 65,536. A push chunk is what is retried together.
    pub push_chunk_recipients_max: u32,
    /// Followers expanded of one message before the rest waits its turn as a slice; 1,024 to 1,048,576. A timeline chunk is
    /// one page of the graph service (`graph.export_page_followers`).
    pub slice_recipients_max: u32,
    /// Posts worked on at one time, by lane; 1 to 4,096 each; how far high goes before normal, and normal before low.
    pub posts_in_flight_max: PerLane,
    /// Redriven posts and slices worked on at one time, each, of all lanes; 1 to 4,096.
    pub redrive_in_flight_max: usize,
    /// When a lane is held back.
    pub gate: Gate,
}

/// When a lane is held back, because the streams below it are deep.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gate {
    /// Chunks that wait in TIMELINE or PUSH in this lane, above which fan-out takes no more posts; it goes on at half.
    pub pending_chunks_max: u64,
    /// How often this is looked at, milliseconds; 10 to 60,000.
    pub interval_ms: u64,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            pending_chunks_max: 4_096,
            interval_ms: 250,
        }
    }
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
    /// Says what is wrong, if anything is.
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
