//! Histograms of seconds.

use std::hash::Hash;
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Bucket bounds of all histograms: 1 ms to 60 s in steps of 1, 2.5, 5, with finer steps near the latency objectives (1 s,
/// 5 s, 30 s).
const SECONDS: [f64; 17] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0,
];

/// A histogram of seconds.
pub fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

/// A family of such histograms, one per label set.
pub fn seconds_family<L: Clone + Hash + Eq>() -> Family<L, Histogram, fn() -> Histogram> {
    Family::new_with_constructor(seconds as fn() -> Histogram)
}

/// A histogram of seconds whose buckets name the trace of their newest sampled observation, as an exemplar.
#[derive(Debug, Clone)]
pub struct TracedHistogram(HistogramWithExemplars<[(&'static str, String); 1]>);

impl TracedHistogram {
    /// Observes a time. `trace_id`: the trace that the observation belongs to, if that is sampled.
    pub fn observe(&self, time: Duration, trace_id: Option<String>) {
        let at = trace_id.is_some().then(SystemTime::now);
        let labels = trace_id.map(|trace_id| [("trace_id", trace_id)]);
        self.0.observe(time.as_secs_f64(), labels, at);
    }
}

impl EncodeMetric for TracedHistogram {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.0.metric_type()
    }
}

impl TypedMetric for TracedHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

/// A histogram of seconds with exemplars.
pub fn traced_seconds() -> TracedHistogram {
    TracedHistogram(HistogramWithExemplars::new(SECONDS.into_iter()))
}

/// A family of such histograms, one per label set.
pub fn traced_seconds_family<L: Clone + Hash + Eq>() -> Family<L, TracedHistogram, fn() -> TracedHistogram> {
    Family::new_with_constructor(traced_seconds as fn() -> TracedHistogram)
}
