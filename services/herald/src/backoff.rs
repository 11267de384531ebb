//! Retry delays.

use std::time::Duration;

use rand::Rng;

/// Exponential back-off with jitter: the ceiling doubles with each attempt, and each delay is random between half of
/// the ceiling and the ceiling. Clients that failed together then don't retry together.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
    attempts: u32,
}

impl Backoff {
    /// Creates a back-off whose ceiling rises from `first` to `max`.
    pub(crate) const fn new(first: Duration, max: Duration) -> Self {
        Self {
            first,
            max,
            attempts: 0,
        }
    }

    /// The next delay; at least `retry_after`, the delay that the server requested, but at most twice the maximum.
    pub(crate) fn next_delay(&mut self, retry_after: Option<Duration>) -> Duration {
        let ceiling = self
            .first
            .saturating_mul(1 << self.attempts.min(20))
            .min(self.max);
        self.attempts = self.attempts.saturating_add(1);
        let delay = rand::rng().random_range(ceiling / 2..=ceiling);
        delay.max(retry_after.unwrap_or_default().min(self.max * 2))
    }

    /// Starts again at the first delay, after a success.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_maximum() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for ceiling in [100, 200, 400, 800, 1_000, 1_000] {
            let delay = backoff.next_delay(None).as_millis();
            assert!((ceiling / 2..=ceiling).contains(&delay), "{delay} for {ceiling}");
        }
        backoff.reset();
        assert!(backoff.next_delay(None) <= Duration::from_millis(100));
    }

    #[test]
    fn a_requested_delay_is_at_most_twice_the_maximum() {
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_secs(1));
        assert_eq!(
            backoff.next_delay(Some(Duration::from_secs(2))),
            Duration::from_secs(2)
        );
        assert_eq!(
            backoff.next_delay(Some(Duration::from_hours(1))),
            Duration::from_secs(2)
        );
    }
}
