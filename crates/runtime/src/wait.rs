//! Work that waits until another part of Herald is back or has room: the store, graph, a stream, the disk.
//!
//! A message that waits stays in its handler: heartbeats keep it, and it spends no attempt.

use std::fmt::Display;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::metrics::Gauge;

/// Bounds of the delay between two attempts; it doubles.
const DELAY_MIN: Duration = Duration::from_millis(200);
const DELAY_MAX: Duration = Duration::from_secs(2);

/// The work of a service that waits. A metric counts it; the first and the last piece of work are logged.
#[derive(Debug, Clone)]
pub struct Waiting {
    work: &'static str,
    gauge: Gauge,
}

/// A piece of work that waits, until it is dropped.
#[derive(Debug)]
pub struct Waiter<'a>(&'a Waiting);

impl Waiting {
    /// `work` is the name of the work in the log, such as "fan-out of posts".
    pub fn new(work: &'static str, gauge: Gauge) -> Self {
        Self { work, gauge }
    }

    /// Begins to wait because of an error. For work that decides itself when to try again.
    pub fn begin(&self, error: &impl Display) -> Waiter<'_> {
        if self.gauge.inc() == 0 {
            tracing::warn!(work = self.work, %error, "work waits");
        }
        Waiter(self)
    }

    /// Makes attempts until one succeeds or fails with an error for which `is_wait` is false. `None` if `stop` was
    /// cancelled while the work waited.
    pub async fn until_done<T, E, F>(
        &self,
        stop: &CancellationToken,
        is_wait: impl Fn(&E) -> bool,
        mut attempt: impl FnMut() -> F,
    ) -> Option<Result<T, E>>
    where
        E: Display,
        F: Future<Output = Result<T, E>>,
    {
        let mut waiter = None;
        let mut delay = DELAY_MIN;
        loop {
            match attempt().await {
                Err(error) if is_wait(&error) => {
                    waiter.get_or_insert_with(|| self.begin(&error));
                }
                done => return Some(done),
            }
            stop.run_until_cancelled(tokio::time::sleep(delay)).await?;
            delay = (2 * delay).min(DELAY_MAX);
        }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if self.0.gauge.dec() == 1 {
            tracing::info!(work = self.0.work, "no work waits any more");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_waits_until_it_succeeds_fails_or_is_stopped() {
        let gauge = Gauge::default();
        let waiting = Waiting::new("tests", gauge.clone());
        let stop = CancellationToken::new();
        let attempts = Cell::new(0);
        // Fails to be waited for twice; then its result.
        let run = |last: Result<u32, &'static str>| {
            attempts.set(0);
            let (attempts, gauge) = (&attempts, &gauge);
            waiting.until_done(
                &stop,
                |error| *error == "away",
                move || async move {
                    attempts.set(attempts.get() + 1);
                    assert_eq!(gauge.get(), i64::from(attempts.get() > 1));
                    if attempts.get() < 3 { Err("away") } else { last }
                },
            )
        };
        assert_eq!(run(Ok(7)).await, Some(Ok(7)));
        assert_eq!(run(Err("corrupt")).await, Some(Err("corrupt")));
        assert_eq!(attempts.get(), 3);
        stop.cancel();
        assert_eq!(run(Ok(7)).await, None);
        assert_eq!((attempts.get(), gauge.get()), (1, 0));
    }
}
