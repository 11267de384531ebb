//! Whether the engine can be used now.

use std::sync::Arc;

use async_trait::async_trait;

use super::{database::Database, timelines::EmbeddedTimelines};
use crate::Result;

/// The embedded engine's [`Health`](crate::Health).
pub(super) struct Health {
    pub(super) records: Arc<Database>,
    pub(super) timelines: Arc<EmbeddedTimelines>,
}

#[async_trait]
impl crate::Health for Health {
    async fn records(&self) -> Result<()> {
        // An empty batch is durable only after all earlier ones, and fails after a failed one.
        self.records.commit(self.records.batch()).await
    }

    async fn timelines(&self) -> Result<()> {
        self.timelines.check()
    }
}
