//! The queue of spans that wait for their export, and a warning about dropped spans: the SDK logs only the first one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, OTEL_BSP_MAX_QUEUE_SIZE, OTEL_BSP_MAX_QUEUE_SIZE_DEFAULT, Span, SpanData,
    SpanExporter, SpanProcessor,
};
use parking_lot::Mutex;

use super::variable;

/// Minimum time between two warnings.
const WARN_INTERVAL: Duration = Duration::from_mins(1);

/// Counts the spans that come to the queue and that leave it for the export. Those that came, did not leave, and exceed
/// the room of the queue were dropped.
#[derive(Debug)]
pub(super) struct Counts {
    room: u64,
    came: AtomicU64,
    left: AtomicU64,
    dropped: AtomicU64,
    warned: Mutex<Warned>,
}

#[derive(Debug, Default)]
struct Warned {
    at: Option<Instant>,
    /// Number of dropped spans that warnings have reported.
    dropped: u64,
}

impl Counts {
    fn new(room: u64) -> Self {
        Self {
            room,
            came: AtomicU64::new(0),
            left: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            warned: Mutex::default(),
        }
    }

    /// For a queue of the size that the environment sets.
    pub(super) fn from_environment() -> Self {
        let room = variable(&[OTEL_BSP_MAX_QUEUE_SIZE]).and_then(|(_, size)| size.parse().ok());
        Self::new(room.unwrap_or(OTEL_BSP_MAX_QUEUE_SIZE_DEFAULT as u64))
    }

    fn come(&self) {
        let came = self.came.fetch_add(1, Ordering::Relaxed) + 1;
        let lacking = came.saturating_sub(self.left.load(Ordering::Relaxed) + self.room);
        // While the queue has room, `lacking` is at most the number of spans that were dropped before.
        self.dropped.fetch_max(lacking, Ordering::Relaxed);
    }

    /// Counts spans that are exported now.
    pub(super) fn leave(&self, spans: usize) {
        self.left.fetch_add(spans as u64, Ordering::Relaxed);
    }

    /// The number of spans that were dropped since the last warning, if it is time for another one.
    fn to_warn(&self, now: Instant) -> Option<u64> {
        let dropped = self.dropped.load(Ordering::Relaxed);
        let mut warned = self.warned.lock();
        let new = dropped - warned.dropped;
        if new == 0 || warned.at.is_some_and(|at| now - at < WARN_INTERVAL) {
            return None;
        }
        *warned = Warned {
            at: Some(now),
            dropped,
        };
        Some(new)
    }

    /// Warns of dropped spans, at most once a minute.
    pub(super) fn warn(&self) {
        if let Some(spans) = self.to_warn(Instant::now()) {
            tracing::warn!(
                spans,
                queue = self.room,
                "spans dropped: they come faster than the collector takes them; lower telemetry.sampling_ratio, or raise \
                 OTEL_BSP_MAX_QUEUE_SIZE"
            );
        }
    }
}

/// The SDK's batch processor with its queue. Counts the spans that come to the queue.
#[derive(Debug)]
pub(super) struct CountedProcessor {
    inner: BatchSpanProcessor,
    counts: Arc<Counts>,
}

impl CountedProcessor {
    /// A processor with this exporter, which must call [`Counts::leave`].
    pub(super) fn new(exporter: impl SpanExporter + 'static, counts: Arc<Counts>) -> Self {
        Self {
            inner: BatchSpanProcessor::builder(exporter).build(),
            counts,
        }
    }
}

impl SpanProcessor for CountedProcessor {
    fn on_start(&self, span: &mut Span, cx: &Context) {
        self.inner.on_start(span, cx);
    }

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() {
            self.counts.come();
        }
        self.inner.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};

    use super::*;

    #[test]
    fn what_has_no_room_is_dropped_and_told_once_a_minute() {
        let counts = Counts::new(10);
        let come = |spans: usize| (0..spans).for_each(|_| counts.come());
        let start = Instant::now();
        let after = |seconds: u64| counts.to_warn(start + Duration::from_secs(seconds));
        come(10);
        assert_eq!(after(0), None);
        come(3);
        assert_eq!(after(0), Some(3));
        // Ten leave, and ten have room again: the three are told once.
        counts.leave(10);
        come(10);
        assert_eq!(after(70), None);
        come(4);
        assert_eq!(after(80), Some(4));
        come(5);
        assert_eq!(after(100), None);
        assert_eq!(after(140), Some(5));
        assert_eq!(after(1_000), None);
    }

    /// Takes the first batch, and then waits.
    #[derive(Debug)]
    struct Stalled {
        counts: Arc<Counts>,
        taken: Arc<Barrier>,
        go_on: Arc<Barrier>,
    }

    impl SpanExporter for Stalled {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            let is_first = self.counts.left.load(Ordering::Relaxed) == 0;
            self.counts.leave(batch.len());
            if is_first {
                self.taken.wait();
                self.go_on.wait();
            }
            Ok(())
        }
    }

    #[test]
    fn the_spans_that_the_sdk_drops_are_counted() {
        const ROOM: u64 = OTEL_BSP_MAX_QUEUE_SIZE_DEFAULT as u64;
        const DROPPED: u64 = 700;
        let counts = Arc::new(Counts::new(ROOM));
        let (taken, go_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let exporter = Stalled {
            counts: Arc::clone(&counts),
            taken: Arc::clone(&taken),
            go_on: Arc::clone(&go_on),
        };
        let provider = SdkTracerProvider::builder()
            .with_span_processor(CountedProcessor::new(exporter, Arc::clone(&counts)))
            .with_sampler(Sampler::AlwaysOn)
            .build();
        let tracer = provider.tracer("test");
        let end_spans = |spans: u64| (0..spans).for_each(|_| tracer.start("span").end());
        // The exporter has taken these, and takes no more.
        end_spans(1);
        taken.wait();
        end_spans(ROOM + DROPPED);
        assert_eq!(counts.dropped.load(Ordering::Relaxed), DROPPED);
        go_on.wait();
        provider.shutdown().unwrap();
        assert_eq!(counts.left.load(Ordering::Relaxed), 1 + ROOM);
        assert_eq!(counts.to_warn(Instant::now()), Some(DROPPED));
    }
}
