//! The registry of a process.

use std::fmt::Write as _;
use std::sync::Arc;

use parking_lot::RwLock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::{PREFIX, text};

/// What can be registered: a counter, gauge, histogram, or a family of them. Clones share the values.
pub trait Metric: EncodeMetric + Clone + std::fmt::Debug + Send + Sync + 'static {}

impl<M: EncodeMetric + Clone + std::fmt::Debug + Send + Sync + 'static> Metric for M {}

/// The metrics of a process by name.
///
/// A family without values is exported too, by its name, type and meaning: who reads `/metrics` sees what can appear.
#[derive(Debug)]
pub struct Registry {
    inner: prometheus_client::registry::Registry,
    families: Vec<Described>,
}

/// The description of a metric that can be without values.
#[derive(Debug)]
struct Described {
    name: String,
    help: String,
    metric: Box<dyn Values>,
}

trait Values: std::fmt::Debug + Send + Sync {
    fn are_empty(&self) -> bool;
    fn metric_type(&self) -> MetricType;
}

impl<M: Metric> Values for M {
    fn are_empty(&self) -> bool {
        EncodeMetric::is_empty(self)
    }

    fn metric_type(&self) -> MetricType {
        EncodeMetric::metric_type(self)
    }
}

impl Registry {
    fn new() -> Self {
        Self {
            inner: prometheus_client::registry::Registry::with_prefix(PREFIX),
            families: Vec::new(),
        }
    }

    /// Registers a metric. `name` is without the prefix, and without the `_total` of a counter. If it ends in `_seconds` or
    /// `_bytes`, that is its unit. `help` is a sentence without its full stop.
    pub fn register(&mut self, name: &str, help: &str, metric: impl Metric) {
        debug_assert!(
            !name.ends_with("_total") && !help.ends_with('.') && !help.is_empty(),
            "{name}: {help}"
        );
        if EncodeMetric::is_empty(&metric) {
            self.families.push(Described {
                name: format!("{PREFIX}_{name}"),
                help: help.to_owned(),
                metric: Box::new(metric.clone()),
            });
        }
        match name.rsplit_once('_') {
            Some((stem, "seconds")) => self.inner.register_with_unit(stem, help, Unit::Seconds, metric),
            Some((stem, "bytes")) => self.inner.register_with_unit(stem, help, Unit::Bytes, metric),
            _ => self.inner.register(name, help, metric),
        }
    }

    /// Registers a source of metrics that are read when they are exported.
    pub fn register_collector(&mut self, collector: impl Collector) {
        self.inner.register_collector(Box::new(collector));
    }

    fn open_metrics(&self) -> String {
        let mut text = String::new();
        // A metric that fails to encode truncates the text; a scraper rejects it because `# EOF` is missing.
        if let Err(error) = self.encode(&mut text) {
            tracing::error!(%error, "metrics can't be encoded");
        }
        text
    }

    fn encode(&self, text: &mut String) -> std::fmt::Result {
        prometheus_client::encoding::text::encode_registry(text, &self.inner)?;
        for family in self.families.iter().filter(|family| family.metric.are_empty()) {
            let Described { name, help, metric } = family;
            writeln!(text, "# HELP {name} {help}.")?;
            writeln!(text, "# TYPE {name} {}", metric.metric_type().as_str())?;
        }
        prometheus_client::encoding::text::encode_eof(text)
    }
}

/// The registry of all parts of a process. Clones share it.
#[derive(Debug, Clone)]
pub struct Shared(Arc<RwLock<Registry>>);

impl Shared {
    /// Creates an empty registry that prepends [`PREFIX`] and an underscore to each name.
    pub fn new() -> Self {
        Self(Arc::new(RwLock::new(Registry::new())))
    }

    /// Registers the metrics of a service or crate: `shared.register(Metrics::new)`.
    pub fn register<M>(&self, make: impl FnOnce(&mut Registry) -> M) -> M {
        make(&mut self.0.write())
    }

    /// All metrics in the OpenMetrics text format ([`OPEN_METRICS`](crate::OPEN_METRICS)).
    pub fn open_metrics(&self) -> String {
        self.0.read().open_metrics()
    }

    /// All metrics in the Prometheus text format ([`PROMETHEUS`](crate::PROMETHEUS)), which has neither units nor exemplars.
    pub fn prometheus(&self) -> String {
        text::to_prometheus(&self.open_metrics())
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Counter, Family, seconds_family, traced_seconds};

    #[test]
    fn histograms_of_seconds_have_their_unit_and_buckets() {
        let shared = Shared::new();
        let wait = shared.register(|registry| {
            let wait = seconds_family::<[(&'static str, &'static str); 1]>();
            registry.register("wait_seconds", "Waiting", wait.clone());
            wait
        });
        wait.get_or_create(&[("lane", "high")]).observe(0.7);
        let text = shared.open_metrics();
        for line in [
            "# HELP herald_wait_seconds Waiting.",
            "# TYPE herald_wait_seconds histogram",
            "# UNIT herald_wait_seconds seconds",
            "herald_wait_seconds_bucket{le=\"0.75\",lane=\"high\"} 1",
            "herald_wait_seconds_bucket{le=\"0.5\",lane=\"high\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_family_without_values_is_described_once() {
        let shared = Shared::new();
        let family = Family::<[(&'static str, &'static str); 1], Counter>::default();
        shared.register(|registry| registry.register("part_things", "Things", family.clone()));
        let described = "# HELP herald_part_things Things.\n# TYPE herald_part_things counter\n";
        assert_eq!(shared.open_metrics(), format!("{described}# EOF\n"));
        family.get_or_create(&[("kind", "one")]).inc();
        assert_eq!(
            shared.open_metrics(),
            format!("{described}herald_part_things_total{{kind=\"one\"}} 1\n# EOF\n")
        );
    }

    #[test]
    fn an_exemplar_names_the_trace_of_a_sampled_observation() {
        let shared = Shared::new();
        let visible = traced_seconds();
        shared.register(|registry| registry.register("visible_seconds", "Visible", visible.clone()));
        visible.observe(Duration::from_millis(700), None);
        assert!(!shared.open_metrics().contains("trace_id"));
        visible.observe(
            Duration::from_millis(700),
            Some("0af7651916cd43dd8448eb211c80319c".into()),
        );
        let text = shared.open_metrics();
        assert!(
            text.contains("_bucket{le=\"0.75\"} 2 # {trace_id=\"0af7651916cd43dd8448eb211c80319c\"} 0.7 "),
            "{text}"
        );
        assert!(shared.prometheus().contains("_bucket{le=\"0.75\"} 2\n"));
    }
}
