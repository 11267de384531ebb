//! Measures what one process does in a second.

use std::time::Duration;

/// Shortest time with a backlog over which a rate is measured.
const MEASURED_MIN: Duration = Duration::from_secs(10);

/// The rate of one process: assumed at first, then measured while there is a backlog, because only then workers do what
/// they can.
#[derive(Debug, Clone)]
pub(crate) struct Meter {
    rate: f64,
    min: f64,
    max: f64,
    /// Time with a backlog since the last measurement.
    measured: Duration,
    /// The same, times the number of busy processes.
    process_seconds: f64,
    /// Deliveries done in this time.
    deliveries: f64,
}

impl Meter {
    /// A rate that starts as assumed and stays between the `factor`th part and `factor` times of it.
    pub(crate) fn new(assumed: f64, factor: f64) -> Self {
        Self {
            rate: assumed,
            min: assumed / factor,
            max: assumed * factor,
            measured: Duration::ZERO,
            process_seconds: 0.0,
            deliveries: 0.0,
        }
    }

    /// Deliveries that one process does in a second; at least the lower bound, so never 0.
    pub(crate) fn rate(&self) -> f64 {
        self.rate
    }

    /// Adds a time in which there was a backlog throughout: its length, the deliveries done, and the number of busy
    /// processes. A time in which nothing was done says nothing about the rate: workers wait for another part of the mesh,
    /// or there are none.
    pub(crate) fn record(&mut self, length: Duration, deliveries: f64, processes: f64) {
        self.measured += length;
        self.process_seconds += length.as_secs_f64() * processes.max(1.0);
        self.deliveries += deliveries;
        if self.measured < MEASURED_MIN {
            return;
        }
        if self.deliveries > 0.0 {
            let measured = self.deliveries / self.process_seconds;
            // The mean with the earlier ones, so that one odd measurement doesn't halve or double the number of processes.
            self.rate = f64::midpoint(self.rate, measured).clamp(self.min, self.max);
        }
        self.measured = Duration::ZERO;
        self.process_seconds = 0.0;
        self.deliveries = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_rate_follows_what_one_busy_process_does() {
        let mut meter = Meter::new(100.0, 4.0);
        for _ in 0..9 {
            meter.record(SECOND, 600.0, 3.0);
        }
        assert!(
            (meter.rate() - 100.0).abs() < f64::EPSILON,
            "too short to measure"
        );
        for _ in 0..91 {
            meter.record(SECOND, 600.0, 3.0);
        }
        assert!((meter.rate() - 200.0).abs() < 1.0, "{}", meter.rate());
    }

    #[test]
    fn a_standstill_is_no_measurement() {
        let mut meter = Meter::new(100.0, 4.0);
        for _ in 0..100 {
            meter.record(SECOND, 0.0, 1.0);
        }
        assert!((meter.rate() - 100.0).abs() < f64::EPSILON);
    }

    proptest! {
        #[test]
        fn the_rate_stays_in_its_bounds(
            recorded in prop::collection::vec((0_u64..20_000, 0.0..1e12, 0.0..1e6), 0..200),
        ) {
            let mut meter = Meter::new(100.0, 4.0);
            for (millis, deliveries, processes) in recorded {
                meter.record(Duration::from_millis(millis), deliveries, processes);
                prop_assert!((25.0..=400.0).contains(&meter.rate()));
            }
        }
    }
}
