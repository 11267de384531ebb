//! All metrics of this service.

use herald_runtime::metrics::{Counter, Family, FloatGauge, Registry};

use crate::domain::{Scope, Snapshot, State};

type Labels = [(&'static str, &'static str); 2];
type Values = Family<Labels, FloatGauge>;

/// The scaler's metrics. A role and lane whose consumers can't be read has no values: an old one, or 0, would be taken for
/// the work.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    work_seconds: Values,
    pending: Values,
    arrival_rate: Values,
    process_rate: Values,
    oldest_seconds: Values,
    active: Values,
    held: Values,
    pub(crate) read_failures: Counter,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "scaler_work_seconds",
            "Work of one process in seconds, by role and lane",
            metrics.work_seconds.clone(),
        );
        registry.register(
            "scaler_pending_deliveries",
            "Deliveries that wait for a worker or are in its hands",
            metrics.pending.clone(),
        );
        registry.register(
            "scaler_arrivals_per_second",
            "Deliveries that arrive in a second, over the last minute",
            metrics.arrival_rate.clone(),
        );
        registry.register(
            "scaler_process_deliveries_per_second",
            "Deliveries that one process does in a second, measured or assumed",
            metrics.process_rate.clone(),
        );
        registry.register(
            "scaler_oldest_seconds",
            "Age of the oldest message that is not acknowledged",
            metrics.oldest_seconds.clone(),
        );
        registry.register(
            "scaler_active",
            "Whether a worker is needed: 1 or 0",
            metrics.active.clone(),
        );
        registry.register(
            "scaler_held",
            "Whether messages wait on purpose: 1 or 0",
            metrics.held.clone(),
        );
        registry.register(
            "scaler_read_failures",
            "Readings of a role and lane that failed",
            metrics.read_failures.clone(),
        );
        metrics
    }

    /// Shows what was read.
    pub(crate) fn show(&self, snapshot: &Snapshot, work_seconds: impl Fn(&State) -> f64) {
        for (scope, state) in snapshot {
            if let Ok(state) = state {
                for (family, value) in self.values(state, work_seconds(state)) {
                    family.get_or_create(&labels(*scope)).set(value);
                }
            } else {
                self.read_failures.inc();
                for family in self.families() {
                    family.remove(&labels(*scope));
                }
            }
        }
    }

    fn families(&self) -> [&Values; 7] {
        [
            &self.work_seconds,
            &self.pending,
            &self.arrival_rate,
            &self.process_rate,
            &self.oldest_seconds,
            &self.active,
            &self.held,
        ]
    }

    fn values(&self, state: &State, work_seconds: f64) -> impl Iterator<Item = (&Values, f64)> {
        let values = [
            work_seconds,
            state.pending,
            state.arrivals,
            state.process_rate,
            state.oldest_seconds,
            f64::from(u8::from(state.active)),
            f64::from(u8::from(state.held)),
        ];
        self.families().into_iter().zip(values)
    }
}

fn labels(scope: Scope) -> Labels {
    [("role", scope.role.as_str()), ("lane", scope.lane_name())]
}
