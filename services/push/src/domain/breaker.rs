//! The circuit breaker of a host: stops requests to a host that keeps failing, so that it does not delay other hosts.

use std::time::{Duration, Instant};

use super::{Reason, Verdict};

/// Consecutive host failures that open the breaker.
const FAILURES_MAX: u32 = 16;

/// Duration of the first opening. It doubles with each opening until a response that is not a host failure.
const OPEN_MIN: Duration = Duration::from_secs(5);

/// Maximum duration of an opening.
const OPEN_MAX: Duration = Duration::from_mins(1);

/// Delay of other requests while one request probes the host.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// How many breakers are not closed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct BreakerCounts {
    pub(crate) open: usize,
    pub(crate) half_open: usize,
}

/// The circuit breaker of one host.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    failures: u32,
    openings: u32,
    open_until: Option<Instant>,
    probing: bool,
}

impl Breaker {
    /// Admits a request, or returns the delay until the next try. The caller must [`report`](Self::report) or
    /// [`cancel`](Self::cancel) an admitted request.
    pub(crate) fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        if let Some(wait) = self.open_for(now) {
            return Err(wait);
        }
        if self.open_until.is_some() {
            if self.probing {
                return Err(PROBE_WAIT);
            }
            self.probing = true;
        }
        Ok(())
    }

    /// Updates the breaker with the verdict of a request. A response that was slow ends an opening, but not a series of
    /// failures, of which it takes one: a host that times out and sometimes responds late keeps failing, and one that
    /// responds late and sometimes times out doesn't.
    pub(crate) fn report(&mut self, now: Instant, verdict: &Verdict, slow: bool) {
        self.probing = false;
        if !is_host_failure(verdict) {
            if !slow || self.open_until.is_some_and(|until| until <= now) {
                *self = Self::default();
            } else if self.open_until.is_none() {
                self.failures = self.failures.saturating_sub(1);
            }
            return;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES_MAX && self.open_for(now).is_none() {
            self.open_until = Some(now + OPEN_MAX.min(OPEN_MIN * 2_u32.saturating_pow(self.openings.min(8))));
            self.openings = self.openings.saturating_add(1);
        }
    }

    /// Cancels an admitted request that was not sent.
    pub(crate) fn cancel(&mut self) {
        self.probing = false;
    }

    /// Whether an opening has ended and no request has succeeded since: one request at a time may try the host.
    pub(crate) fn is_half_open(&self, now: Instant) -> bool {
        self.open_until.is_some_and(|until| until <= now)
    }

    /// Remaining time of the opening; `None` if the breaker is not open.
    pub(crate) fn open_for(&self, now: Instant) -> Option<Duration> {
        self.open_until
            .filter(|until| now < *until)
            .map(|until| until - now)
    }
}

/// Whether a verdict is a failure of the host. A 429 or a 500 may concern only one device of a push service.
fn is_host_failure(verdict: &Verdict) -> bool {
    matches!(
        verdict,
        Verdict::Retry {
            reason: Reason::Timeout | Reason::Connection | Reason::Status(502..=504),
            ..
        }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Verdict = Verdict::Retry {
        reason: Reason::Timeout,
        after: None,
    };
    const BUSY: Verdict = Verdict::Retry {
        reason: Reason::Status(429),
        after: None,
    };

    fn fail(breaker: &mut Breaker, now: Instant, times: u32) {
        for _ in 0..times {
            breaker.report(now, &TIMEOUT, true);
        }
    }

    #[test]
    fn it_opens_after_consecutive_failures_and_admits_one_probe() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        fail(&mut breaker, now, FAILURES_MAX - 1);
        assert_eq!(breaker.admit(now), Ok(()));
        fail(&mut breaker, now, 1);
        assert_eq!(breaker.admit(now), Err(OPEN_MIN));
        // Failures of requests that were in flight when it opened change nothing.
        fail(&mut breaker, now, 100);
        assert_eq!(breaker.admit(now), Err(OPEN_MIN));

        let later = now + OPEN_MIN;
        assert!(!breaker.is_half_open(now));
        assert!(breaker.is_half_open(later));
        assert_eq!(breaker.admit(later), Ok(()));
        assert_eq!(breaker.admit(later), Err(PROBE_WAIT));
        breaker.cancel();
        assert_eq!(breaker.admit(later), Ok(()));
        fail(&mut breaker, later, 1);
        assert_eq!(breaker.admit(later), Err(OPEN_MIN * 2));

        let again = later + OPEN_MIN * 2;
        assert_eq!(breaker.admit(again), Ok(()));
        breaker.report(again, &Verdict::Accepted, false);
        assert_eq!(breaker.open_for(again), None);
        assert!(!breaker.is_half_open(again));
        assert_eq!(breaker.admit(again), Ok(()));
        assert_eq!(breaker.admit(again), Ok(()));
    }

    #[test]
    fn a_failure_of_one_device_resets_the_breaker() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        fail(&mut breaker, now, FAILURES_MAX - 1);
        breaker.report(now, &BUSY, false);
        fail(&mut breaker, now, FAILURES_MAX - 1);
        assert_eq!(breaker.admit(now), Ok(()));
    }

    #[test]
    fn slow_responses_between_timeouts_do_not_reset_the_breaker() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 1..FAILURES_MAX {
            breaker.report(now, &Verdict::Accepted, true);
            assert_eq!(breaker.admit(now), Ok(()));
            fail(&mut breaker, now, 2);
        }
        assert_eq!(breaker.admit(now), Err(OPEN_MIN));
        let later = now + OPEN_MIN;
        assert_eq!(breaker.admit(later), Ok(()));
        breaker.report(later, &Verdict::Accepted, true);
        assert_eq!(breaker.admit(later), Ok(()));
        assert_eq!(breaker.admit(later), Ok(()), "the host responds, if slowly");
    }

    #[test]
    fn rare_timeouts_do_not_block_a_host_that_always_responds_late() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..2 * FAILURES_MAX {
            fail(&mut breaker, now, 1);
            breaker.report(now, &Verdict::Accepted, true);
        }
        assert_eq!(breaker.admit(now), Ok(()));
    }

    #[test]
    fn an_opening_is_never_longer_than_a_minute() {
        let mut now = Instant::now();
        let mut breaker = Breaker::default();
        fail(&mut breaker, now, FAILURES_MAX);
        for _ in 0..100 {
            let Err(wait) = breaker.admit(now) else {
                panic!("the breaker is not open")
            };
            assert!(wait <= OPEN_MAX);
            now += wait;
            assert_eq!(breaker.admit(now), Ok(()));
            fail(&mut breaker, now, 1);
        }
    }
}
