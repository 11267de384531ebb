//! What the readings of one consumer tell: arrivals, activity, and progress.

use std::{collections::VecDeque, time::Duration};

/// Time over which the rate of arrivals is averaged.
const WINDOW: Duration = Duration::from_mins(1);
/// Shortest time between two readings that are kept.
const KEPT_INTERVAL: Duration = Duration::from_secs(1);

/// One reading of a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    /// Messages that wait for a worker.
    pub(crate) pending: u64,
    /// Messages delivered and not acknowledged: in a worker's hands, waiting for a retry, or dead and waiting for the next pull.
    pub(crate) ack_pending: u64,
    /// Deliveries so far, redeliveries included.
    pub(crate) delivered: u64,
    /// Time since the last delivery, as far as the server knows it.
    pub(crate) delivered_ago: Option<Duration>,
    /// Age of the oldest message that is not acknowledged.
    pub(crate) oldest: Duration,
    /// Whether an operator has paused the consumer.
    pub(crate) paused: bool,
}

impl Reading {
    pub(crate) fn outstanding(&self) -> u64 {
        self.pending + self.ack_pending
    }

    /// Messages that have arrived so far. Redeliveries count too; they are rarer than the messages that wait for one.
    fn arrived(&self) -> u64 {
        self.delivered + self.pending
    }
}

/// What happened between two readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) length: Duration,
    /// Messages that workers have settled, each redelivery included.
    pub(crate) settled: u64,
    /// Whether messages waited for a worker at both readings.
    pub(crate) had_backlog: bool,
}

/// The readings of one consumer.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    last: Option<(Duration, Reading)>,
    /// Times and arrivals of the window, the oldest first.
    arrived: VecDeque<(Duration, u64)>,
    active_until: Duration,
}

impl History {
    /// Adds a reading; returns what has happened since the last one, unless that failed.
    pub(crate) fn record(
        &mut self,
        now: Duration,
        reading: Reading,
        keep_active: Duration,
    ) -> Option<Progress> {
        // The counts of a consumer that was made again start at 0.
        let remade = self
            .last
            .is_some_and(|(_, last)| reading.delivered < last.delivered);
        if remade {
            self.last = None;
            self.arrived.clear();
        }
        let seen = self.arrived.back().map(|(_, arrived)| *arrived);
        let new = remade || seen.is_some_and(|seen| reading.arrived() > seen);
        if new || reading.outstanding() > 0 {
            self.active_until = now + keep_active;
        } else if let Some(left) = reading.delivered_ago.and_then(|ago| keep_active.checked_sub(ago)) {
            self.active_until = self.active_until.max(now + left);
        }
        self.keep(now, reading.arrived());
        let last = self.last.replace((now, reading));
        let (at, last) = last?;
        let settled = |reading: Reading| reading.delivered.saturating_sub(reading.ack_pending);
        Some(Progress {
            length: now.saturating_sub(at),
            settled: settled(reading).saturating_sub(settled(last)),
            had_backlog: last.pending > 0 && reading.pending > 0 && !last.paused && !reading.paused,
        })
    }

    /// Notes that a reading failed: what happens until the next one can't be measured.
    pub(crate) fn interrupt(&mut self) {
        self.last = None;
    }

    /// Messages that arrive in a second, averaged over the window.
    pub(crate) fn arrivals_per_second(&self, now: Duration) -> f64 {
        let (Some((at, oldest)), Some((_, newest))) = (self.arrived.front(), self.arrived.back()) else {
            return 0.0;
        };
        // A short history would take a burst for a steady flow.
        let seconds = now.saturating_sub(*at).max(WINDOW).as_secs_f64();
        newest.saturating_sub(*oldest) as f64 / seconds
    }

    /// Whether there are messages, or there were some a short time ago.
    pub(crate) fn is_active(&self, now: Duration) -> bool {
        now < self.active_until
    }

    fn keep(&mut self, now: Duration, arrived: u64) {
        if let [.., (before, _), newest] = self.arrived.make_contiguous()
            && now.saturating_sub(*before) < KEPT_INTERVAL
        {
            *newest = (now, arrived);
        } else {
            self.arrived.push_back((now, arrived));
        }
        while self
            .arrived
            .get(1)
            .is_some_and(|(at, _)| now.saturating_sub(*at) >= WINDOW)
        {
            self.arrived.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Duration = Duration::from_secs(30);
    const EMPTY: Reading = Reading {
        pending: 0,
        ack_pending: 0,
        delivered: 0,
        delivered_ago: None,
        oldest: Duration::ZERO,
        paused: false,
    };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn messages_that_are_done_between_two_readings_keep_a_consumer_active() {
        let mut history = History::default();
        for second in 0..100 {
            let reading = Reading {
                delivered: 10 * second,
                ..EMPTY
            };
            history.record(at(second), reading, KEEP);
            assert_eq!(history.is_active(at(second)), second > 0, "{second}");
        }
        assert!((history.arrivals_per_second(at(99)) - 10.0).abs() < 0.5);
        let last = Reading {
            delivered: 990,
            ..EMPTY
        };
        for second in 100..200 {
            history.record(at(second), last, KEEP);
            assert_eq!(history.is_active(at(second)), second < 99 + 30, "{second}");
        }
        assert!(history.arrivals_per_second(at(199)).abs() < f64::EPSILON);
    }

    #[test]
    fn a_scaler_that_was_started_again_knows_the_last_delivery() {
        let mut history = History::default();
        let reading = Reading {
            delivered: 10,
            delivered_ago: Some(at(20)),
            ..EMPTY
        };
        history.record(at(0), reading, KEEP);
        assert!(history.is_active(at(9)));
        assert!(!history.is_active(at(10)));
    }

    #[test]
    fn a_dead_message_that_waits_for_a_pull_keeps_a_consumer_active() {
        let mut history = History::default();
        let reading = Reading {
            ack_pending: 1,
            delivered: 5,
            delivered_ago: Some(at(10_000)),
            ..EMPTY
        };
        for second in 0..100 {
            history.record(at(second), reading, KEEP);
            assert!(history.is_active(at(second)));
        }
    }

    #[test]
    fn a_burst_is_no_steady_flow() {
        let mut history = History::default();
        history.record(at(0), EMPTY, KEEP);
        let burst = Reading {
            pending: 6_000,
            ..EMPTY
        };
        history.record(at(1), burst, KEEP);
        assert!((history.arrivals_per_second(at(1)) - 100.0).abs() < f64::EPSILON);
    }

    #[test]
    fn progress_is_what_was_settled() {
        let mut history = History::default();
        let backlog = Reading {
            pending: 100,
            ..EMPTY
        };
        assert_eq!(history.record(at(0), backlog, KEEP), None);
        let later = Reading {
            pending: 50,
            ack_pending: 10,
            delivered: 50,
            ..EMPTY
        };
        let progress = Progress {
            length: at(2),
            settled: 40,
            had_backlog: true,
        };
        assert_eq!(history.record(at(2), later, KEEP), Some(progress));
        // Acknowledgements alone are progress too.
        let done = Reading {
            pending: 0,
            ack_pending: 0,
            delivered: 50,
            ..EMPTY
        };
        let progress = Progress {
            length: at(1),
            settled: 10,
            had_backlog: false,
        };
        assert_eq!(history.record(at(3), done, KEEP), Some(progress));
        history.interrupt();
        assert_eq!(history.record(at(4), done, KEEP), None);
    }

    #[test]
    fn a_consumer_that_was_made_again_starts_anew() {
        let mut history = History::default();
        let before = Reading {
            delivered: 1_000_000,
            ..EMPTY
        };
        history.record(at(0), before, KEEP);
        let after = Reading {
            pending: 5,
            delivered: 2,
            ..EMPTY
        };
        assert_eq!(history.record(at(1), after, KEEP), None);
        assert!(history.arrivals_per_second(at(1)).abs() < f64::EPSILON);
    }

    #[test]
    fn the_number_of_kept_readings_is_bounded() {
        let mut history = History::default();
        for tick in 0..10_000 {
            history.record(Duration::from_millis(100 * tick), EMPTY, KEEP);
            // Each second has at most two.
            assert!(history.arrived.len() <= 122, "{}", history.arrived.len());
        }
    }
}
