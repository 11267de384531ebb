//! Leaves a host alone that fails again and again, so that it doesn't keep others waiting.

use std::time::{Duration, Instant};

use super::{Reason, Verdict};

/// So many failures in a row, without anything else in between, open the breaker.
const FAILURES_MAX: u32 = 16;

/// For how long it opens first; each time it opens again without a success in between it is twice as long.
const OPEN: Duration = Duration::from_secs(5);

/// For how long it opens at most.
const OPEN_MAX: Duration = Duration::from_mins(1);

/// How long others wait while one request tries whether the host is back.
const PROBE: Duration = Duration::from_secs(1);

/// The breaker of one host.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    failures: u32,
    openings: u32,
    open_until: Option<Instant>,
    probing: bool,
}

impl Breaker {
    /// Whether a request may go out now; otherwise, when to ask again. One that may must be followed by
    /// [`report`](Self::report) or [`withdraw`](Self::withdraw).
    pub(crate) fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        if let Some(wait) = self.wait(now) {
            return Err(wait);
        }
        if self.open_until.is_some() {
            if self.probing {
                return Err(PROBE);
            }
            self.probing = true;
        }
        Ok(())
    }

    /// Takes note of what came of a request.
    pub(crate) fn report(&mut self, now: Instant, verdict: &Verdict) {
        self.probing = false;
        if !is_failure_of_host(verdict) {
            *self = Self::default();
            return;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES_MAX && self.wait(now).is_none() {
            self.open_until = Some(now + OPEN_MAX.min(OPEN * 2_u32.saturating_pow(self.openings.min(8))));
            self.openings = self.openings.saturating_add(1);
        }
    }

    /// Takes back a request that was admitted and not sent.
    pub(crate) fn withdraw(&mut self) {
        self.probing = false;
    }

    /// How long it stays open.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        self.open_until
            .filter(|until| now < *until)
            .map(|until| until - now)
    }
}

/// Whether the host itself is to blame. A 429 or a 500 can be about one device of a push service that serves millions.
fn is_failure_of_host(verdict: &Verdict) -> bool {
    matches!(
        verdict,
        Verdict::Later {
            reason: Reason::Timeout | Reason::Connection | Reason::Status(502..=504),
            ..
        }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Verdict = Verdict::Later {
        reason: Reason::Timeout,
        after: None,
    };
    const BUSY: Verdict = Verdict::Later {
        reason: Reason::Status(429),
        after: None,
    };

    fn fail(breaker: &mut Breaker, now: Instant, times: u32) {
        for _ in 0..times {
            breaker.report(now, &TIMEOUT);
        }
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_lets_one_try() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        fail(&mut breaker, now, FAILURES_MAX - 1);
        assert_eq!(breaker.admit(now), Ok(()));
        fail(&mut breaker, now, 1);
        assert_eq!(breaker.admit(now), Err(OPEN));
        // Those on their way when it opened change nothing.
        fail(&mut breaker, now, 100);
        assert_eq!(breaker.admit(now), Err(OPEN));

        let later = now + OPEN;
        assert_eq!(breaker.admit(later), Ok(()));
        assert_eq!(breaker.admit(later), Err(PROBE));
        breaker.withdraw();
        assert_eq!(breaker.admit(later), Ok(()));
        fail(&mut breaker, later, 1);
        assert_eq!(breaker.admit(later), Err(OPEN * 2));

        let again = later + OPEN * 2;
        assert_eq!(breaker.admit(again), Ok(()));
        breaker.report(again, &Verdict::Accepted);
        assert_eq!(breaker.wait(again), None);
        assert_eq!(breaker.admit(again), Ok(()));
        assert_eq!(breaker.admit(again), Ok(()));
    }

    #[test]
    fn what_is_about_one_device_shows_that_the_host_is_well() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        fail(&mut breaker, now, FAILURES_MAX - 1);
        breaker.report(now, &BUSY);
        fail(&mut breaker, now, FAILURES_MAX - 1);
        assert_eq!(breaker.admit(now), Ok(()));
    }

    #[test]
    fn it_never_opens_for_longer_than_a_minute() {
        let mut now = Instant::now();
        let mut breaker = Breaker::default();
        fail(&mut breaker, now, FAILURES_MAX);
        for _ in 0..100 {
            let Err(wait) = breaker.admit(now) else {
                panic!("it must be open")
            };
            assert!(wait <= OPEN_MAX);
            now += wait;
            assert_eq!(breaker.admit(now), Ok(()));
            fail(&mut breaker, now, 1);
        }
    }
}
