//! All metrics of this service.

use herald_model::{DeliveryState, DisabledReason, Lane};
use herald_runtime::{
    metrics::{
        Counter, Family, Gauge, Histogram, Registry, TracedHistogram, seconds_family, traced_seconds_family,
    },
    trace::sampled_trace_id,
};

use crate::domain::{BreakerCounts, Counts, Provider, Reason, Verdict};

type Label = (&'static str, &'static str);
type Histograms = Family<[Label; 1], Histogram, fn() -> Histogram>;

/// The metrics of the push service.
#[derive(Debug, Clone)]
pub struct Metrics {
    sends: Family<[Label; 2], Counter>,
    retries: Family<[Label; 2], Counter>,
    claims: Family<[Label; 1], Counter>,
    breakers: Family<[Label; 1], Gauge>,
    send_seconds: Histograms,
    sends_in_flight: Gauge,
    recipients: Family<[Label; 2], Counter>,
    accept_to_push_seconds: Family<[Label; 1], TracedHistogram, fn() -> TracedHistogram>,
    chunks: Family<[Label; 2], Counter>,
    devices_disabled: Family<[Label; 1], Counter>,
    devices_removed: Counter,
    /// Chunks that wait in their handlers for the store.
    pub(crate) waiting: Gauge,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            sends: Family::default(),
            retries: Family::default(),
            claims: Family::default(),
            breakers: Family::default(),
            send_seconds: seconds_family(),
            sends_in_flight: Gauge::default(),
            recipients: Family::default(),
            accept_to_push_seconds: traced_seconds_family(),
            chunks: Family::default(),
            devices_disabled: Family::default(),
            devices_removed: Counter::default(),
            waiting: Gauge::default(),
        };
        registry.register(
            "push_sends",
            "Sends to devices, by provider and result",
            metrics.sends.clone(),
        );
        registry.register(
            "push_retries",
            "Sends to devices that are tried again later, by provider and reason",
            metrics.retries.clone(),
        );
        registry.register(
            "push_claims",
            "Claims of chunks, by result",
            metrics.claims.clone(),
        );
        registry.register(
            "push_breakers",
            "Hosts whose circuit breaker is not closed, by its state",
            metrics.breakers.clone(),
        );
        registry.register(
            "push_send_seconds",
            "Duration of one request",
            metrics.send_seconds.clone(),
        );
        registry.register(
            "push_sends_in_flight",
            "Requests in flight",
            metrics.sends_in_flight.clone(),
        );
        registry.register(
            "push_recipients",
            "Recipients settled, by their final state",
            metrics.recipients.clone(),
        );
        registry.register(
            "push_accept_to_push_seconds",
            "Time from the acceptance of a post until a provider accepts its push",
            metrics.accept_to_push_seconds.clone(),
        );
        registry.register(
            "push_chunks",
            "Attempts at chunks, by result",
            metrics.chunks.clone(),
        );
        registry.register(
            "push_devices_disabled",
            "Webhooks disabled, by reason",
            metrics.devices_disabled.clone(),
        );
        registry.register(
            "push_waiting",
            "Chunks that wait for the store",
            metrics.waiting.clone(),
        );
        registry.register(
            "push_devices_removed",
            "Web Push devices removed because their subscription no longer exists",
            metrics.devices_removed.clone(),
        );
        metrics
    }

    /// Counts a send by its verdict.
    pub(crate) fn record_send(&self, provider: Provider, verdict: Verdict) {
        self.sends
            .get_or_create(&[("provider", provider.as_str()), ("result", verdict.as_str())])
            .inc();
        if let Verdict::Retry { reason, .. } = verdict {
            self.retries
                .get_or_create(&[("provider", provider.as_str()), ("reason", label(reason))])
                .inc();
        }
    }

    /// Counts a claim of a chunk, or its end before its pushes were sent: `granted`, `refused` or `lost`.
    pub(crate) fn count_claim(&self, result: &'static str) {
        self.claims.get_or_create(&[("result", result)]).inc();
    }

    /// Shows how many breakers are not closed.
    pub(crate) fn show_breakers(&self, counts: BreakerCounts) {
        for (state, count) in [("open", counts.open), ("half_open", counts.half_open)] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.breakers.get_or_create(&[("state", state)]).set(count);
        }
    }

    /// Starts the timer of a request; dropping the timer ends it.
    pub(crate) fn start_request(&self, provider: Provider) -> impl Drop + use<> {
        self.sends_in_flight.inc();
        let seconds = self
            .send_seconds
            .get_or_create(&[("provider", provider.as_str())])
            .clone();
        RequestTimer {
            in_flight: self.sends_in_flight.clone(),
            seconds,
            started: std::time::Instant::now(),
        }
    }

    /// Observes the time from the acceptance of a post until a provider accepted its push.
    pub(crate) fn observe_accepted(&self, lane: Lane, after: std::time::Duration) {
        self.accept_to_push_seconds
            .get_or_create(&[("lane", lane.as_str())])
            .observe(after, sampled_trace_id());
    }

    /// Counts settled recipients.
    pub(crate) fn count_settled(&self, lane: Lane, counts: Counts) {
        for (state, count) in [
            (DeliveryState::Delivered, counts.delivered),
            (DeliveryState::Suppressed, counts.suppressed),
            (DeliveryState::Expired, counts.expired),
            (DeliveryState::Dead, counts.dead),
        ] {
            if count > 0 {
                let labels = [("lane", lane.as_str()), ("state", state.as_str())];
                self.recipients.get_or_create(&labels).inc_by(u64::from(count));
            }
        }
    }

    /// Counts a device that was disabled.
    pub(crate) fn count_device_disabled(&self, reason: DisabledReason) {
        self.devices_disabled
            .get_or_create(&[("reason", reason.as_str())])
            .inc();
    }

    /// Counts a Web Push device that was removed because it is gone.
    pub(crate) fn count_device_removed(&self) {
        self.devices_removed.inc();
    }

    /// Counts an attempt at a chunk by its result: `done`, `retried`, `waiting` or `terminated`.
    pub(crate) fn count_chunk(&self, lane: Lane, result: &'static str) {
        self.chunks
            .get_or_create(&[("lane", lane.as_str()), ("result", result)])
            .inc();
    }
}

/// A reason to try again, as a label.
const fn label(reason: Reason) -> &'static str {
    match reason {
        Reason::Timeout => "timeout",
        Reason::Connection => "connection",
        Reason::Breaker => "breaker",
        Reason::Busy => "busy",
        Reason::Status(429) => "too_many_requests",
        Reason::Status(500..) => "server_error",
        _ => "other",
    }
}

struct RequestTimer {
    in_flight: Gauge,
    seconds: Histogram,
    started: std::time::Instant,
}

impl Drop for RequestTimer {
    fn drop(&mut self) {
        self.in_flight.dec();
        self.seconds.observe(self.started.elapsed().as_secs_f64());
    }
}
