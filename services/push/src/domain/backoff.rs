//! When a device is tried again.

use std::time::Duration;

use super::Reason;

/// The back-off of a device: exponential, with jitter. A delay is at least half of `base × 2ⁿ⁻¹` before the `n`-th retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backoff {
    /// Maximum delay before the first retry.
    pub(crate) base: Duration,
    /// Maximum delay before every retry.
    pub(crate) max: Duration,
    /// Limit of a delay that a provider asks for.
    pub(crate) requested_max: Duration,
}

impl Backoff {
    /// The number of failed attempts after a failure, and the delay before the next one. `attempts` failed before;
    /// `requested` is the `Retry-After` of the provider, the remaining time of an open circuit breaker, or the
    /// [`busy_delay`]; `share`, from 0 to 1, is the random part of the delay.
    ///
    /// A delay is never shorter than the back-off. A longer one that was asked for spends no attempt. The wait for a
    /// host that is busy spends none either, and lasts as long as it says: it is the same for all devices of a chunk.
    pub(crate) fn next(
        &self,
        attempts: u32,
        reason: Reason,
        requested: Option<Duration>,
        share: f64,
    ) -> (u32, Duration) {
        if let (Reason::Busy, Some(delay)) = (reason, requested) {
            return (attempts, delay);
        }
        let own = self.delay(attempts.saturating_add(1), share);
        match requested.map(|delay| delay.min(self.requested_max)) {
            Some(delay) if delay > own => (attempts, delay),
            _ if reason == Reason::Breaker => (attempts, own),
            _ => (attempts.saturating_add(1), own),
        }
    }

    fn delay(&self, attempt: u32, share: f64) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        let ceiling = self.base.saturating_mul(1 << doublings).min(self.max);
        ceiling.mul_f64(0.5 + share.clamp(0.0, 1.0) / 2.0)
    }
}

/// First wait for a host that is busy.
const BUSY_DELAY_MIN: Duration = Duration::from_secs(1);

/// Longest wait for a host that is busy.
const BUSY_DELAY_MAX: Duration = Duration::from_mins(1);

/// Time before the end of a push in which it is tried once more.
const LAST_TRY: Duration = Duration::from_secs(5);

/// How long a push that is `age` old, and expires after `left`, waits for a host that is busy. `share`, from 0 to 1, is
/// that of the chunk.
///
/// The waits end at fixed ages, each about twice the one before, and at most [`BUSY_DELAY_MAX`] apart. So all devices of
/// a chunk that wait for busy hosts are due together, and a chunk comes back a few times, not every second. The last
/// wait ends [`LAST_TRY`] before the push expires.
pub(crate) fn busy_delay(age: Duration, left: Duration, share: f64) -> Duration {
    let mut end = BUSY_DELAY_MIN.mul_f64(1.0 + share.clamp(0.0, 1.0));
    let earliest = age.saturating_add(BUSY_DELAY_MIN);
    while end < earliest && end < BUSY_DELAY_MAX {
        end *= 2;
    }
    if end < earliest {
        let behind = earliest.saturating_sub(end).as_secs_f64() / BUSY_DELAY_MAX.as_secs_f64();
        end += BUSY_DELAY_MAX.mul_f64(behind.ceil());
    }
    let delay = end.saturating_sub(age);
    match left.checked_sub(LAST_TRY) {
        Some(until_last) if until_last >= BUSY_DELAY_MIN => delay.min(until_last),
        _ => delay,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BACKOFF: Backoff = Backoff {
        base: Duration::from_secs(2),
        max: Duration::from_mins(5),
        requested_max: Duration::from_mins(10),
    };

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn only_a_longer_delay_that_was_asked_for_spends_no_attempt() {
        let next = |attempts, reason, after| BACKOFF.next(attempts, reason, after, 1.0);
        let busy = Reason::Status(429);
        assert_eq!(next(0, busy, None), (1, secs(2)));
        assert_eq!(next(0, busy, Some(secs(0))), (1, secs(2)));
        assert_eq!(next(3, busy, Some(secs(1))), (4, secs(16)));
        assert_eq!(next(3, busy, Some(secs(17))), (3, secs(17)));
        assert_eq!(next(3, busy, Some(secs(86_400))), (3, secs(600)));
        assert_eq!(next(3, Reason::Breaker, Some(secs(5))), (3, secs(16)));
        assert_eq!(next(3, Reason::Breaker, Some(secs(50))), (3, secs(50)));
        assert_eq!(next(3, Reason::Busy, Some(secs(2))), (3, secs(2)));
    }

    #[test]
    fn a_chunk_that_waits_for_a_busy_host_comes_back_ever_more_rarely() {
        let mut age = Duration::ZERO;
        let mut wakes = 0;
        while age < Duration::from_hours(1) {
            age += busy_delay(age, Duration::MAX, 0.3);
            wakes += 1;
        }
        assert!(wakes <= 66, "{wakes} wakes in an hour");
        // Devices that a chunk tries within seconds of each other are due together.
        let due = |age: u64| secs(age) + busy_delay(secs(age), Duration::MAX, 0.3);
        assert_eq!(due(12), due(18));
        assert_eq!(due(1_000), due(1_020));
    }

    #[test]
    fn a_push_that_waits_for_a_busy_host_is_tried_before_it_expires() {
        let end = secs(100);
        let mut age = Duration::ZERO;
        let mut last = age;
        while age < end {
            last = age;
            age += busy_delay(age, end.saturating_sub(age), 0.3);
        }
        assert_eq!(last, end.saturating_sub(LAST_TRY));
    }

    proptest! {
        #[test]
        fn a_delay_is_between_half_the_back_off_and_the_maximum(
            attempts in any::<u32>(), after in prop::option::of(0..100_000_u64), share in 0.0..=1.0,
        ) {
            let (next, delay) = BACKOFF.next(attempts, Reason::Timeout, after.map(secs), share);
            let least = BACKOFF.delay(attempts.saturating_add(1), 0.0);
            prop_assert!(delay >= least && delay >= secs(1));
            prop_assert!(delay <= BACKOFF.requested_max);
            prop_assert!(next == attempts || next == attempts.saturating_add(1));
            prop_assert!(next > attempts || attempts == u32::MAX || delay > least);
        }

        #[test]
        fn a_wait_for_a_busy_host_is_bounded(age_ms in 0..40_000_000_000_u64, share in 0.0..=1.0) {
            let delay = busy_delay(Duration::from_millis(age_ms), Duration::MAX, share);
            // The float arithmetic of old pushes is exact to less than a millisecond.
            prop_assert!(delay + Duration::from_millis(1) >= BUSY_DELAY_MIN);
            prop_assert!(delay <= 2 * BUSY_DELAY_MAX, "{delay:?}");
        }
    }
}
