//! The registry that `/metrics` shows.
//!
//! Each service has a `metrics.rs` with a `Metrics::new(&mut Registry)` in which every one of its names stands once:
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

/// What every name starts with. Names are registered without it.
pub const PREFIX: &str = "herald";

/// The media type of [`encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The buckets of [`seconds`]: 1 ms to 60 s, in steps of 1, 2.5, 5; finer where the promises are (1 s, 5 s, 30 s).
pub const SECONDS: [f64; 17] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0,
];

/// One registry for all services of a process. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Shared(Arc<RwLock<Registry>>);

impl Shared {
    /// An empty registry, which puts [`PREFIX`] and an underscore before each name.
    pub fn new() -> Self {
        Self(Arc::new(RwLock::new(Registry::with_prefix(PREFIX))))
    }

    /// Lets a service register its metrics: `shared.register(Metrics::new)`.
    pub fn register<M>(&self, make: impl FnOnce(&mut Registry) -> M) -> M {
        make(&mut self.0.write())
    }

    /// The text that `/metrics` shows.
    pub fn encode(&self) -> String {
        encode(&self.0.read())
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

/// A registry's metrics in the OpenMetrics text format.
pub fn encode(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a string can't fail; a metric that fails to encode ends the text early, which a scraper notices by the
    // missing end mark.
    if let Err(error) = encoding::text::encode(&mut text, registry) {
        tracing::error!(%error, "metrics not encoded");
    }
    text
}

/// A histogram of seconds from 1 ms to 60 s.
pub fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

/// A family of histograms of seconds: one a label set.
pub fn seconds_family<L: Clone + std::hash::Hash + Eq>() -> Family<L, Histogram, fn() -> Histogram> {
    Family::new_with_constructor(seconds as fn() -> Histogram)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_have_their_buckets() {
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
