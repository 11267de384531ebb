//! How fast a redrive goes.

use std::time::{Duration, Instant};

use herald_store::Operation;

/// Dead letters that are under way at the beginning, as long as it isn't known whether they fail again.
const IN_FLIGHT_FIRST: u64 = 256;

/// One failure among so many that succeeded is none to wait for.
const RESOLVED_PER_FAILURE: u64 = 100;

/// How many dead letters a redrive may have under way: few at the beginning, one more for each that succeeded. While dead letters
/// fail it stays at few, so that a cause that isn't mended costs hundreds of sends and not all of them.
pub(crate) fn in_flight_max(operation: &Operation, limit: u64) -> u64 {
    let cautious = operation.what.failures_max > 0;
    if !cautious {
        return limit;
    }
    let failing = operation.failed > operation.resolved / RESOLVED_PER_FAILURE;
    let earned = if failing { 0 } else { operation.resolved };
    IN_FLIGHT_FIRST.saturating_add(earned).min(limit)
}

/// Whether too many have failed again.
pub(crate) fn is_hopeless(operation: &Operation) -> bool {
    operation.what.failures_max > 0 && operation.failed >= u64::from(operation.what.failures_max)
}

/// Dead letters a second of a redrive that names no rate: live traffic doesn't feel them.
pub(crate) const RATE_DEFAULT: u32 = 500;
/// The highest rate that a redrive may have.
pub(crate) const RATE_MAX: u32 = 5_000;

/// How many of `wanted` dead letters to claim at once: those of a tenth of a second, so that a redrive that is stopped ends soon.
pub(crate) fn share(rate_max: u32, wanted: u64) -> u64 {
    wanted.min(u64::from(rate_max).div_ceil(10))
}

/// How much unused time is caught up: what claiming dead letters and recording their places takes between two shares.
const CATCH_UP_MAX: Duration = Duration::from_millis(50);

/// Spreads dead letters evenly over time: a burst would delay live messages.
#[derive(Debug)]
pub(crate) struct Pace {
    interval: Duration,
    next: Instant,
}

impl Pace {
    /// `rate_max` dead letters a second.
    pub(crate) fn new(rate_max: u32, now: Instant) -> Self {
        Self {
            interval: Duration::from_secs(1) / rate_max.max(1),
            next: now,
        }
    }

    /// How long to wait before the next dead letter, for a caller that sends one then.
    pub(crate) fn wait(&mut self, now: Instant) -> Duration {
        let turn = now
            .checked_sub(CATCH_UP_MAX)
            .map_or(self.next, |earliest| self.next.max(earliest));
        self.next = turn + self.interval;
        turn.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use herald_model::time::Timestamp;
    use herald_store::{NewOperation, OperationId, OperationKind, OperationState};
    use proptest::prelude::*;

    use super::*;

    fn operation(failures_max: u32, resolved: u64, failed: u64) -> Operation {
        Operation {
            id: OperationId(1),
            what: NewOperation {
                kind: OperationKind::Redrive,
                actor: String::new(),
                at: Timestamp(0),
                selection: bytes::Bytes::new(),
                excluded: 0,
                rate_max: 0,
                failures_max,
                target: None,
            },
            state: OperationState::Running,
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
        assert_eq!(in_flight_max(&operation(100, 0, 0), 16_384), 256);
        assert_eq!(in_flight_max(&operation(100, 1_000, 0), 16_384), 1_256);
        assert_eq!(in_flight_max(&operation(100, 1_000_000, 0), 16_384), 16_384);
        assert_eq!(in_flight_max(&operation(100, 1_000, 11), 16_384), 256);
        assert_eq!(in_flight_max(&operation(0, 0, 500), 16_384), 16_384);
        assert!(!is_hopeless(&operation(100, 0, 99)) && is_hopeless(&operation(100, 0, 100)));
        assert!(!is_hopeless(&operation(0, 0, 1_000)));
    }

    proptest! {
        #[test]
        fn no_more_than_the_rate_is_sent(rate in 1..=RATE_MAX, late in prop::collection::vec(0..20_000_u64, 1..100)) {
            let start = Instant::now();
            let mut now = start;
            let mut pace = Pace::new(rate, start);
            let apart = Duration::from_secs(1) / rate;
            for (sent, late) in (0_u32..).zip(&late) {
                now += pace.wait(now);
                prop_assert!(now >= start + apart * sent);
                now += Duration::from_micros(*late);
            }
        }

        #[test]
        fn a_coarse_timer_does_not_slow_it_down(rate in 1..=RATE_MAX) {
            let start = Instant::now();
            let mut now = start;
            let mut pace = Pace::new(rate, start);
            for _ in 0..1_000 {
                let wait = pace.wait(now);
                if !wait.is_zero() {
                    // As a timer of whole milliseconds does.
                    now += Duration::from_millis(wait.as_millis() as u64 + 1);
                }
            }
            let took = now - start;
            let due = Duration::from_secs(1) / rate * 1_000;
            prop_assert!(took <= due + Duration::from_millis(2), "{took:?} for {due:?}");
        }
    }

    #[test]
    fn a_share_is_what_a_tenth_of_a_second_may_have() {
        assert_eq!(share(5_000, 1_000), 500);
        assert_eq!(share(1, 1_000), 1);
        assert_eq!(share(5_000, 20), 20);
    }
}
