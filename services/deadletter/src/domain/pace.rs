//! How fast a redrive goes.

use std::time::{Duration, Instant};

use herald_store::Act;

/// Letters that are under way at the beginning, as long as it isn't known whether they fail again.
const IN_FLIGHT_FIRST: u64 = 256;

/// One failure among so many that succeeded is none to wait for.
const RESOLVED_PER_FAILURE: u64 = 100;

/// How many letters a redrive may have under way: few at the beginning, one more for each that succeeded. While letters
/// fail it stays at few, so that a cause that isn't mended costs hundreds of sends and not all of them.
pub(crate) fn in_flight_max(act: &Act, limit: u64) -> u64 {
    let cautious = act.what.failures_max > 0;
    if !cautious {
        return limit;
    }
    let failing = act.failed > act.resolved / RESOLVED_PER_FAILURE;
    let earned = if failing { 0 } else { act.resolved };
    IN_FLIGHT_FIRST.saturating_add(earned).min(limit)
}

/// Whether too many have failed again.
pub(crate) fn is_hopeless(act: &Act) -> bool {
    act.what.failures_max > 0 && act.failed >= u64::from(act.what.failures_max)
}

/// Spreads letters evenly over the time.
#[derive(Debug)]
pub(crate) struct Pace {
    rate_max: u32,
    next: Instant,
}

impl Pace {
    /// So many letters a second; 0: no limit.
    pub(crate) fn new(rate_max: u32, now: Instant) -> Self {
        Self { rate_max, next: now }
    }

    /// How many of `wanted` letters to send together: what a fiftieth of a second may have, so that others find gaps.
    pub(crate) fn share(&self, wanted: u64) -> u64 {
        if self.rate_max == 0 {
            wanted
        } else {
            wanted.min(u64::from(self.rate_max).div_ceil(50))
        }
    }

    /// How long to wait before sending.
    pub(crate) fn wait(&self, now: Instant) -> Duration {
        self.next.saturating_duration_since(now)
    }

    /// Letters were sent. Time that was not used is not made up for.
    pub(crate) fn sent(&mut self, count: u64, now: Instant) {
        if self.rate_max > 0 {
            let takes = Duration::from_secs_f64(count as f64 / f64::from(self.rate_max));
            self.next = self.next.max(now) + takes;
        }
    }
}

#[cfg(test)]
mod tests {
    use herald_model::time::Micros;
    use herald_store::{ActId, ActKind, ActState, NewAct};
    use proptest::prelude::*;

    use super::*;

    fn act(failures_max: u32, resolved: u64, failed: u64) -> Act {
        Act {
            id: ActId(1),
            what: NewAct {
                kind: ActKind::Redrive,
                actor: String::new(),
                at: Micros(0),
                selection: bytes::Bytes::new(),
                excluded: 0,
                rate_max: 0,
                failures_max,
                target: None,
            },
            state: ActState::Running,
            reason: String::new(),
            ended_at: None,
            frozen: 1_000_000,
            reached: 0,
            skipped: 0,
            resolved,
            failed,
            redrive_after: 0,
        }
    }

    #[test]
    fn a_redrive_begins_with_few_and_grows_as_long_as_none_fails() {
        assert_eq!(in_flight_max(&act(100, 0, 0), 16_384), 256);
        assert_eq!(in_flight_max(&act(100, 1_000, 0), 16_384), 1_256);
        assert_eq!(in_flight_max(&act(100, 1_000_000, 0), 16_384), 16_384);
        assert_eq!(in_flight_max(&act(100, 1_000, 11), 16_384), 256);
        assert_eq!(in_flight_max(&act(0, 0, 500), 16_384), 16_384);
        assert!(!is_hopeless(&act(100, 0, 99)) && is_hopeless(&act(100, 0, 100)));
        assert!(!is_hopeless(&act(0, 0, 1_000)));
    }

    proptest! {
        #[test]
        fn no_more_than_the_rate_is_sent(rate in 1..50_000_u32, wanted in prop::collection::vec(1..5_000_u64, 1..100)) {
            let start = Instant::now();
            let mut now = start;
            let mut pace = Pace::new(rate, start);
            let mut sent = 0;
            for wanted in wanted {
                now += pace.wait(now);
                let count = pace.share(wanted);
                prop_assert!(count >= 1 && count <= wanted);
                pace.sent(count, now);
                sent += count;
            }
            now += pace.wait(now);
            let seconds = now.duration_since(start).as_secs_f64();
            prop_assert!((seconds - sent as f64 / f64::from(rate)).abs() < 1e-3, "{} s for {}", seconds, sent);
        }
    }
}
