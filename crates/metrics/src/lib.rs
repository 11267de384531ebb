//! The metrics of a process: their registry, and its text for `/metrics`.
//!
//! `metrics.rs` of each service and crate has a `Metrics::new(&mut Registry)`, which is the only place that names its
//! metrics:
//!
//! ```
//! use herald_metrics::{Counter, Histogram, Registry, Shared, seconds};
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
//! assert!(shared.open_metrics().contains("herald_analytics_rows_total 1"));
//! ```
//!
//! # Names
//! A name is `herald_{part}_{what}_{unit}`. The registry adds the prefix, and `_total` to counters. The part is the service or
//! the subsystem. The unit is a base unit (seconds, bytes) and comes last. A label has few values, all known beforehand: never
//! a user, a host or a text that a caller chose.

mod disk;
mod observe;
mod process;
mod registry;
mod text;

pub use disk::register_disk;
pub use observe::{TracedHistogram, seconds, seconds_family, traced_seconds, traced_seconds_family};
pub use process::{register_build, register_process};
pub use prometheus_client::collector::Collector;
pub use prometheus_client::encoding;
pub use prometheus_client::metrics::MetricType;
pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::family::Family;
pub use prometheus_client::metrics::gauge::Gauge;
pub use prometheus_client::metrics::histogram::Histogram;
pub use registry::{Metric, Registry, Shared};
pub use text::{OPEN_METRICS, PROMETHEUS};

/// Prefix of all metric names. Names are registered without it.
pub const PREFIX: &str = "herald";

/// A gauge whose values have fractions.
pub type FloatGauge = Gauge<f64, std::sync::atomic::AtomicU64>;
