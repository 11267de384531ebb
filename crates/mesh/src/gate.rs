//! Backpressure of fan-out: a lane is paused while too many chunks are pending in the streams below.

use serde::{Deserialize, Serialize};

/// When fan-out pauses a lane because too many chunks are pending in TIMELINE or PUSH.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gate {
    /// Pending chunks of a lane in TIMELINE or PUSH at which fan-out pauses the lane; it resumes at half; at least 1.
    pub pending_chunks_max: u64,
    /// Interval at which the pending chunks are read, milliseconds; 10 to 60,000.
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

impl Gate {
    /// Whether a lane should be paused, from the number of its chunks that are pending in TIMELINE or PUSH, whichever
    /// are more. It pauses at the limit and resumes at half of it.
    pub const fn should_pause(&self, paused: bool, pending: u64) -> bool {
        if paused {
            pending > self.pending_chunks_max / 2
        } else {
            pending >= self.pending_chunks_max
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paused_lane_resumes_at_half_the_limit() {
        let gate = Gate {
            pending_chunks_max: 100,
            ..Gate::default()
        };
        assert!(!gate.should_pause(false, 99));
        assert!(gate.should_pause(false, 100));
        assert!(gate.should_pause(true, 51));
        assert!(!gate.should_pause(true, 50));
    }
}
