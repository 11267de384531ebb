//! How long to wait before trying again.

use std::time::Duration;

use rand::Rng;

/// Delays that double from try to try, each drawn from the upper half of its span, so that many clients that failed at
/// one moment don't come back at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
    tries: u32,
}

impl Backoff {
    /// From `first` up to `max`.
    pub(crate) const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, tries: 0 }
    }

    /// The next delay; at least `asked`, when the server asked for one, though never over twice the maximum.
    pub(crate) fn next(&mut self, asked: Option<Duration>) -> Duration {
        let span = self.first.saturating_mul(1 << self.tries.min(20)).min(self.max);
        self.tries = self.tries.saturating_add(1);
        let delay = rand::rng().random_range(span / 2..=span);
        delay.max(asked.unwrap_or_default().min(self.max * 2))
    }

    /// After a success.
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_maximum() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for span in [100, 200, 400, 800, 1_000, 1_000] {
            let delay = backoff.next(None).as_millis();
            assert!((span / 2..=span).contains(&delay), "{delay} for {span}");
        }
        backoff.reset();
        assert!(backoff.next(None) <= Duration::from_millis(100));
    }

    #[test]
    fn the_server_may_ask_for_more_within_reason() {
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_secs(1));
        assert_eq!(backoff.next(Some(Duration::from_secs(2))), Duration::from_secs(2));
        assert_eq!(
            backoff.next(Some(Duration::from_hours(1))),
            Duration::from_secs(2)
        );
    }
}
