//! Every metric of this service.

use herald_runtime::metrics::{Counter, Registry};

/// The archive's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Posts and deletions archived.
    pub messages: Counter,
    /// Committed batches.
    pub batches: Counter,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            messages: Counter::default(),
            batches: Counter::default(),
        };
        registry.register(
            "archive_messages",
            "Posts and deletions archived",
            metrics.messages.clone(),
        );
        registry.register("archive_batches", "Committed batches", metrics.batches.clone());
        metrics
    }
}
