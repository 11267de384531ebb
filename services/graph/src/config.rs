//! What can be set.

use serde::{Deserialize, Serialize};

/// The graph service's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Followers in one ExportFollowers answer, and so in one chunk of fan-out; 64 to 65,536. More makes chunks that are
    /// cheaper a delivery and coarser to retry.
    pub export_page_followers: usize,
    /// Whether a new follow brings the author's newest posts.
    pub backfill: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            export_page_followers: 4_096,
            backfill: true,
        }
    }
}

impl Config {
    /// Says what is wrong, if anything is.
    pub fn validate(&self) -> Result<(), String> {
        herald_runtime::bounds!("graph", self, {
            export_page_followers: 64..=65_536,
        });
        Ok(())
    }
}
