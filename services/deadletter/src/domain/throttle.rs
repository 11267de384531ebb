//! The limits of a redrive: dead letters in flight, failures, and rate.

use std::time::{Duration, Instant};

use herald_store::Operation;

/// Dead letters in flight at the start of a redrive, before any outcome is known.
const IN_FLIGHT_INITIAL: u64 = 256;

/// Successes for each failure that is ignored when the in-flight limit grows.
const RESOLVED_PER_FAILURE: u64 = 100;

/// Dead letters that a redrive may have in flight, up to `limit`: 256, and one more for each success.
///
/// The limit stays at 256 while more than 1% fail: if the cause of the failures isn't fixed, the redrive sends hundreds
/// of dead letters and not all of them. A redrive without `failures_max` has the full limit from its start.
pub(crate) fn in_flight_max(operation: &Operation, limit: u64) -> u64 {
    if operation.what.failures_max == 0 {
        return limit;
    }
    let failing = operation.failed > operation.resolved / RESOLVED_PER_FAILURE;
    let earned = if failing { 0 } else { operation.resolved };
    IN_FLIGHT_INITIAL.saturating_add(earned).min(limit)
}

/// Whether as many dead letters failed again as the redrive allows.
pub(crate) fn failure_limit_reached(operation: &Operation) -> bool {
    operation.what.failures_max > 0 && operation.failed >= u64::from(operation.what.failures_max)
}

/// Rate of a redrive without an explicit rate, dead letters a second: low enough not to slow live traffic.
pub(crate) const RATE_DEFAULT: u32 = 500;
/// Highest rate of a redrive, dead letters a second.
pub(crate) const RATE_MAX: u32 = 5_000;

/// Dead letters to claim at once, up to `wanted`: as many as the rate allows in 100 ms, so that a cancelled redrive
/// ends soon.
pub(crate) fn claim_size(rate_max: u32, wanted: u64) -> u64 {
    wanted.min(u64::from(rate_max).div_ceil(10))
}

/// Unused time that the limiter makes up for: claiming and recording dead letters takes about as long.
const CREDIT_MAX: Duration = Duration::from_millis(50);

/// Spaces dead letters evenly over time: a burst would delay live messages.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    interval: Duration,
    next: Instant,
}

impl RateLimiter {
    /// Creates a limiter of `rate_max` dead letters a second, at least 1.
    pub(crate) fn new(rate_max: u32, now: Instant) -> Self {
        Self {
            interval: Duration::from_secs(1) / rate_max.max(1),
            next: now,
        }
    }

    /// Reserves the next slot and returns the delay until it.
    pub(crate) fn reserve(&mut self, now: Instant) -> Duration {
        let slot = now
            .checked_sub(CREDIT_MAX)
            .map_or(self.next, |earliest| self.next.max(earliest));
        self.next = slot + self.interval;
        slot.saturating_duration_since(now)
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
                push_ttl: None,
                target: None,
            },
            state: OperationState::Running,
            reason: String::new(),
            ended_at: None,
            selected: 1_000_000,
            reached: 0,
            skipped: 0,
            resolved,
            failed,
            expired: 0,
            redrive_after: 0,
        }
    }

    #[test]
    fn the_in_flight_limit_starts_at_256_and_grows_while_dead_letters_succeed() {
        assert_eq!(in_flight_max(&operation(100, 0, 0), 16_384), 256);
        assert_eq!(in_flight_max(&operation(100, 1_000, 0), 16_384), 1_256);
        assert_eq!(in_flight_max(&operation(100, 1_000_000, 0), 16_384), 16_384);
        assert_eq!(in_flight_max(&operation(100, 1_000, 11), 16_384), 256);
        assert_eq!(in_flight_max(&operation(0, 0, 500), 16_384), 16_384);
        assert!(
            !failure_limit_reached(&operation(100, 0, 99)) && failure_limit_reached(&operation(100, 0, 100))
        );
        assert!(!failure_limit_reached(&operation(0, 0, 1_000)));
    }

    proptest! {
        #[test]
        fn the_rate_is_never_exceeded(rate in 1..=RATE_MAX, late in prop::collection::vec(0..20_000_u64, 1..100)) {
            let start = Instant::now();
            let mut now = start;
            let mut limiter = RateLimiter::new(rate, start);
            let interval = Duration::from_secs(1) / rate;
            for (sent, late) in (0_u32..).zip(&late) {
                now += limiter.reserve(now);
                prop_assert!(now >= start + interval * sent);
                now += Duration::from_micros(*late);
            }
        }

        #[test]
        fn a_timer_with_millisecond_resolution_does_not_lower_the_rate(rate in 1..=RATE_MAX) {
            let start = Instant::now();
            let mut now = start;
            let mut limiter = RateLimiter::new(rate, start);
            for _ in 0..1_000 {
                let wait = limiter.reserve(now);
                if !wait.is_zero() {
                    // A timer rounds up to whole milliseconds.
                    now += Duration::from_millis(wait.as_millis() as u64 + 1);
                }
            }
            let took = now - start;
            let due = Duration::from_secs(1) / rate * 1_000;
            prop_assert!(took <= due + Duration::from_millis(2), "{took:?} for {due:?}");
        }
    }

    #[test]
    fn one_claim_is_at_most_the_rate_of_100_ms() {
        assert_eq!(claim_size(5_000, 1_000), 500);
        assert_eq!(claim_size(1, 1_000), 1);
        assert_eq!(claim_size(5_000, 20), 20);
    }
}
