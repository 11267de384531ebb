//! Configuration.

use serde::{Deserialize, Serialize};

/// The graph service's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Maximum number of followers in one ExportFollowers page, and so in one timeline chunk; 64 to 65,536. Larger
    /// chunks cost less per delivery, but a retry repeats more deliveries.
    pub export_page_followers: usize,
    /// Whether a new follow delivers the author's newest posts to the follower's timeline.
    pub backfill: bool,
    /// Authors that a user may follow, as far as this process knows of the follows that others add: a soft quota; at
    /// most 100,000. 0: no quota. A new follow beyond it gets RESOURCE_EXHAUSTED, `QUOTA_EXCEEDED`; follows that exist
    /// stay.
    pub following_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            export_page_followers: 4_096,
            backfill: true,
            following_max: 0,
        }
    }
}

impl Config {
    /// Checks all bounds; the error names the first invalid key.
    pub fn validate(&self) -> Result<(), String> {
        herald_runtime::bounds!("graph", self, {
            export_page_followers: 64..=65_536,
            following_max: 0..=100_000,
        });
        Ok(())
    }
}
