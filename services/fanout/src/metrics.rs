//! All metrics of this service.

use herald_runtime::metrics::{Counter, Gauge, Registry};

/// The fanout service's metrics.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Posts and slices expanded.
    pub slices: Counter,
    /// Timeline deliveries planned.
    pub timeline_planned: Counter,
    /// Pushes planned.
    pub push_planned: Counter,
    /// Posts and slices that wait for another part of the mesh.
    pub waiting: Gauge,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "fanout_slices",
            "Posts and slices of posts expanded",
            metrics.slices.clone(),
        );
        registry.register(
            "fanout_timeline_deliveries_planned",
            "Timeline deliveries planned",
            metrics.timeline_planned.clone(),
        );
        registry.register(
            "fanout_push_deliveries_planned",
            "Pushes planned",
            metrics.push_planned.clone(),
        );
        registry.register(
            "fanout_waiting",
            "Posts and slices that wait: the graph service is unavailable, or a stream or the disk is full",
            metrics.waiting.clone(),
        );
        metrics
    }
}
