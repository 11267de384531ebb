//! Limits the share of time that an audit works.

use std::time::{Duration, Instant};

/// Minimum work before a pause.
const WORK_MIN: Duration = Duration::from_millis(2);
/// Maximum pause. An interval that needs a longer one was mostly waiting, not work.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Pauses after work so that work takes at most a share of the time.
#[derive(Debug)]
pub(crate) struct Throttle {
    share: f64,
    resumed_at: Instant,
}

impl Throttle {
    /// `share` is above 0 and at most 1; 1 never pauses.
    pub(crate) fn new(share: f64) -> Self {
        Self {
            share,
            resumed_at: Instant::now(),
        }
    }

    /// Pauses if enough work was done since the last pause.
    pub(crate) async fn pause(&mut self) {
        if let Some(pause) = pause_after(self.resumed_at.elapsed(), self.share) {
            tokio::time::sleep(pause).await;
            self.resumed_at = Instant::now();
        }
    }
}

fn pause_after(worked: Duration, share: f64) -> Option<Duration> {
    (share < 1.0 && worked >= WORK_MIN).then(|| {
        let pause = worked.as_secs_f64() * (1.0 / share - 1.0);
        Duration::try_from_secs_f64(pause).map_or(PAUSE_MAX, |pause| pause.min(PAUSE_MAX))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_limit_work_to_its_share_of_the_time() {
        let pause = |worked, share| pause_after(Duration::from_millis(worked), share);
        assert_eq!(pause(10, 0.5), Some(Duration::from_millis(10)));
        assert_eq!(pause(10, 0.1), Some(Duration::from_millis(90)));
        assert_eq!(pause(1, 0.1), None);
        assert_eq!(pause(10_000, 1.0), None);
        assert_eq!(pause(10_000, 0.1), Some(PAUSE_MAX));
        assert_eq!(pause(10_000, f64::MIN_POSITIVE), Some(PAUSE_MAX));
    }
}
