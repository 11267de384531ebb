//! All metrics of this service.

use herald_model::{Channel, Lane};
use herald_runtime::metrics::{Counter, Family, Gauge, Registry};

/// The fanout service's metrics.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Posts and slices expanded.
    pub slices: Counter,
    planned: Family<[(&'static str, &'static str); 1], Counter>,
    paused: Family<[(&'static str, &'static str); 1], Gauge>,
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
            "fanout_deliveries_planned",
            "Deliveries planned, by channel",
            metrics.planned.clone(),
        );
        registry.register(
            "fanout_paused",
            "Whether a lane is paused, because too many of its chunks wait in TIMELINE or PUSH: 1 or 0",
            metrics.paused.clone(),
        );
        registry.register(
            "fanout_waiting",
            "Posts and slices that wait: the graph service is unavailable, or a stream or the disk is full",
            metrics.waiting.clone(),
        );
        metrics
    }

    /// Whether a lane is paused. From now on it is exported, with the value 0.
    pub fn paused(&self, lane: Lane) -> Gauge {
        self.paused.get_or_create_owned(&[("lane", lane.as_str())])
    }

    /// Counts planned deliveries.
    pub(crate) fn count_planned(&self, channel: Channel, deliveries: u64) {
        let labels = [("channel", channel.as_str())];
        self.planned.get_or_create(&labels).inc_by(deliveries);
    }
}
