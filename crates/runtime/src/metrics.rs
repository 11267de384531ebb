//! The metrics registry of `/metrics`.
//!
//! `metrics.rs` of each service has a `Metrics::new(&mut Registry)`, which is the only place that names its metrics:
//!
//! ```
//! use herald_runtime::metrics::{Counter, Histogram, Registry, Shared, seconds};
//!
//! struct Metrics {
//!     rows: Counter,
//!     commit_seconds: Histogram,
//! }
//!
//! impl Metrics {
//!     fn new(registry: &mut Registry) -> Self {
//!         let metrics = Self { rows: Counter::default(), commit_seconds: seconds() };
//!         registry.register("analytics_rows", "Rows written", metrics.rows.clone());
//!         registry.register("analytics_commit_seconds", "Time of one commit", metrics.commit_seconds.clone());
//!         metrics
//!     }
//! }
//!
//! let shared = Shared::new();
//! let metrics = shared.register(Metrics::new);
//! metrics.rows.inc();
//! assert!(shared.encode().contains("herald_analytics_rows_total 1"));
//! ```

use std::sync::Arc;

use parking_lot::RwLock;
pub use prometheus_client::encoding;
pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::family::Family;
pub use prometheus_client::metrics::gauge::Gauge;
pub use prometheus_client::metrics::histogram::Histogram;
pub use prometheus_client::registry::{Registry, Unit};

/// Prefix of all metric names. Names are registered without it.
pub const PREFIX: &str = "herald";

/// The media type of the text that [`encode`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bucket bounds of [`seconds`]: 1 ms to 60 s in steps of 1, 2.5, 5, with finer steps near the latency objectives (1 s,
/// 5 s, 30 s).
pub const SECONDS: [f64; 17] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0,
];

/// The registry of all services of a process. Clones share it.
#[derive(Debug, Clone)]
pub struct Shared(Arc<RwLock<Registry>>);

impl Shared {
    /// Creates an empty registry that prepends [`PREFIX`] and an underscore to each name.
    pub fn new() -> Self {
        Self(Arc::new(RwLock::new(Registry::with_prefix(PREFIX))))
    }

    /// Registers the metrics of a service: `shared.register(Metrics::new)`.
    pub fn register<M>(&self, make: impl FnOnce(&mut Registry) -> M) -> M {
        make(&mut self.0.write())
    }

    /// The response body of `/metrics`.
    pub fn encode(&self) -> String {
        encode(&self.0.read())
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

/// Encodes the metrics of a registry in the OpenMetrics text format.
pub fn encode(registry: &Registry) -> String {
    let mut text = String::new();
    // A metric that fails to encode truncates the text; a scraper rejects it because `# EOF` is missing.
    if let Err(error) = encoding::text::encode(&mut text, registry) {
        tracing::error!(%error, "metrics can't be encoded");
    }
    text
}

/// A histogram of seconds with the buckets [`SECONDS`].
pub fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

/// A family of such histograms, one per label set.
pub fn seconds_family<L: Clone + std::hash::Hash + Eq>() -> Family<L, Histogram, fn() -> Histogram> {
    Family::new_with_constructor(seconds as fn() -> Histogram)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_of_seconds_have_their_buckets() {
        let shared = Shared::new();
        let wait = shared.register(|registry| {
            let wait = seconds_family::<[(&'static str, &'static str); 1]>();
            registry.register("wait_seconds", "Waiting", wait.clone());
            wait
        });
        wait.get_or_create(&[("lane", "high")]).observe(0.7);
        let text = shared.encode();
        assert!(
            text.contains("herald_wait_seconds_bucket{le=\"0.75\",lane=\"high\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("herald_wait_seconds_bucket{le=\"0.5\",lane=\"high\"} 0"),
            "{text}"
        );
        assert!(text.ends_with("# EOF\n"));
    }
}
