//! Every metric of this service.

use std::time::Duration;

use herald_runtime::metrics::{Counter, Histogram, Registry, seconds};

/// The timeline service's counters.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Deliveries that became readable, repeats included.
    pub deliveries: Counter,
    /// Recipients given up because delivering to them fails by a fault.
    pub isolated: Counter,
    /// From acceptance to readable, seconds, one observation a chunk.
    pub accept_to_visible: Histogram,
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            deliveries: Counter::default(),
            isolated: Counter::default(),
            accept_to_visible: seconds(),
        };
        registry.register(
            "timeline_deliveries",
            "Deliveries that became readable, repeats included",
            metrics.deliveries.clone(),
        );
        registry.register(
            "timeline_isolated",
            "Recipients given up because delivering to them fails by a fault",
            metrics.isolated.clone(),
        );
        registry.register(
            "timeline_accept_to_visible_seconds",
            "From acceptance of a post to its being readable on timelines, one observation a chunk",
            metrics.accept_to_visible.clone(),
        );
        metrics
    }

    pub(crate) fn visible(&self, after: Duration, recipients: u32) {
        self.deliveries.inc_by(recipients.into());
        self.accept_to_visible.observe(after.as_secs_f64());
    }
}
