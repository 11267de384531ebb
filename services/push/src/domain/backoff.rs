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
    /// `requested` is the `Retry-After` of the provider, or the remaining time of an open circuit breaker; `share`,
    /// from 0 to 1, is the random part of the delay.
    ///
    /// A delay is never shorter than the back-off. A longer one that was asked for spends no attempt.
    pub(crate) fn next(
        &self,
        attempts: u32,
        reason: Reason,
        requested: Option<Duration>,
        share: f64,
    ) -> (u32, Duration) {
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
    }
}
