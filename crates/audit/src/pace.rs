//! Leaving time to others.

use std::time::{Duration, Instant};

/// Work that is done before a rest, at least.
const WORK_MIN: Duration = Duration::from_millis(2);
/// The longest rest: what took so long was no work.
const REST_MAX: Duration = Duration::from_secs(1);

/// Rests after work, so that no more than a share of the time is work.
#[derive(Debug)]
pub(crate) struct Pace {
    share: f64,
    rested: Instant,
}

impl Pace {
    /// `share` is above 0, and 1 for one that never rests.
    pub(crate) fn new(share: f64) -> Self {
        Self {
            share,
            rested: Instant::now(),
        }
    }

    /// Rests, if there was work enough since the last time.
    pub(crate) async fn rest(&mut self) {
        if let Some(rest) = rest_after(self.rested.elapsed(), self.share) {
            tokio::time::sleep(rest).await;
            self.rested = Instant::now();
        }
    }
}

fn rest_after(worked: Duration, share: f64) -> Option<Duration> {
    (share < 1.0 && worked >= WORK_MIN).then(|| {
        let rest = worked.as_secs_f64() * (1.0 / share - 1.0);
        Duration::try_from_secs_f64(rest).map_or(REST_MAX, |rest| rest.min(REST_MAX))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_makes_the_work_its_share_of_the_time() {
        let rest = |worked, share| rest_after(Duration::from_millis(worked), share);
        assert_eq!(rest(10, 0.5), Some(Duration::from_millis(10)));
        assert_eq!(rest(10, 0.1), Some(Duration::from_millis(90)));
        assert_eq!(rest(1, 0.1), None);
        assert_eq!(rest(10_000, 1.0), None);
        assert_eq!(rest(10_000, 0.1), Some(REST_MAX));
        assert_eq!(rest(10_000, f64::MIN_POSITIVE), Some(REST_MAX));
    }
}
