//! All metrics of this service.

use std::time::Duration;

use herald_runtime::{
    metrics::{Counter, Family, Gauge, Registry, TracedHistogram, traced_seconds},
    trace::sampled_trace_id,
};
use herald_store::SuppressedReason;

/// The timeline service's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Deliveries that became readable, redeliveries included.
    pub deliveries: Counter,
    /// Recipients marked dead because of a permanent error.
    pub dead: Counter,
    /// Recipients whose timelines were not written on purpose, redeliveries included, by reason.
    suppressed: Family<[(&'static str, &'static str); 1], Counter>,
    /// Messages that wait in their handlers for the store.
    pub waiting: Gauge,
    /// Seconds from the acceptance of a post until it is readable, one observation per chunk.
    accept_to_visible: TracedHistogram,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            deliveries: Counter::default(),
            dead: Counter::default(),
            suppressed: Family::default(),
            waiting: Gauge::default(),
            accept_to_visible: traced_seconds(),
        };
        registry.register(
            "timeline_deliveries",
            "Deliveries that became readable, redeliveries included",
            metrics.deliveries.clone(),
        );
        registry.register(
            "timeline_dead",
            "Recipients marked dead because of a permanent error",
            metrics.dead.clone(),
        );
        registry.register(
            "timeline_suppressed",
            "Recipients whose timelines were not written on purpose, redeliveries included, by reason",
            metrics.suppressed.clone(),
        );
        registry.register(
            "timeline_waiting",
            "Messages that wait for the store",
            metrics.waiting.clone(),
        );
        registry.register(
            "timeline_accept_to_visible_seconds",
            "Time from the acceptance of a post until it is readable on timelines, one observation per chunk",
            metrics.accept_to_visible.clone(),
        );
        metrics
    }

    pub(crate) fn count_suppressed(&self, reason: SuppressedReason, recipients: u32) {
        let reason = match reason {
            SuppressedReason::Inactive => "inactive",
            SuppressedReason::Drowning => "drowning",
            _ => "other",
        };
        self.suppressed
            .get_or_create(&[("reason", reason)])
            .inc_by(recipients.into());
    }

    pub(crate) fn observe_visible(&self, after: Duration, recipients: u32) {
        self.deliveries.inc_by(recipients.into());
        self.accept_to_visible.observe(after, sampled_trace_id());
    }
}
