//! The readiness of a process as a metric: alerts see what `/readyz` tells, also where no caller is sent to the process.

use herald_metrics::encoding::{DescriptorEncoder, EncodeMetric as _};
use herald_metrics::{Collector, Family, Gauge, MetricType, Registry};

use crate::http::Readiness;

/// Registers the required checks of a process. They run when they are exported.
pub fn register_ready(registry: &mut Registry, readiness: Readiness) {
    registry.register_collector(Ready(readiness));
}

#[derive(Debug)]
struct Ready(Readiness);

impl Collector for Ready {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let ready = Family::<[(&'static str, String); 1], Gauge>::default();
        for state in self.0.states() {
            if state.required {
                ready
                    .get_or_create(&[("check", state.name)])
                    .set(state.ready.into());
            }
        }
        let help = "Whether a check passes without which the process is not ready: 1 or 0.";
        ready.encode(encoder.encode_descriptor("process_ready", help, None, MetricType::Gauge)?)
    }
}

#[cfg(test)]
mod tests {
    use herald_metrics::Shared;

    use super::*;

    #[test]
    fn a_required_check_has_a_value_and_a_reported_one_has_none() {
        let (shared, readiness) = (Shared::new(), Readiness::new());
        shared.register(|registry| register_ready(registry, readiness.clone()));
        readiness.check("nats", || Err("the connection to NATS is down".into()));
        readiness.check("store", || Err("away".into()));
        readiness.report_only("store");
        // Checks of a service that starts later count too.
        let later = Readiness::new();
        readiness.include(later.clone());
        let streams = later.flag("streams");
        streams.set(true);
        let text = shared.open_metrics();
        assert!(
            text.contains("herald_process_ready{check=\"nats\"} 0\n"),
            "{text}"
        );
        assert!(
            text.contains("herald_process_ready{check=\"streams\"} 1\n"),
            "{text}"
        );
        assert!(!text.contains("store"), "{text}");
        streams.set(false);
        let text = shared.open_metrics();
        assert!(
            text.contains("herald_process_ready{check=\"streams\"} 0\n"),
            "{text}"
        );
    }
}
