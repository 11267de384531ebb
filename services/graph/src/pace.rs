//! The pace of imports: bulk work yields to live calls.
//!
//! *Invariant:* while live calls come in, at most one part of an import is begun at a time, and half of the time none.
//! Without live calls, imports run as fast as the store takes them.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

/// Time for which imports yield after a live call.
const LIVE_FOR: Duration = Duration::from_secs(5);

/// Longest pause of an import after a part.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Knows of live calls, and makes imports wait.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    started: Instant,
    /// Milliseconds from `started` until imports no longer yield.
    live_until: AtomicU64,
    /// Held by the import whose part is applied, while it yields.
    turn: Mutex<()>,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                started: Instant::now(),
                live_until: AtomicU64::new(0),
                turn: Mutex::new(()),
            }),
        }
    }

    /// Notes a call that somebody waits for: a Follow, an Unfollow, or the fan-out of a post.
    pub(crate) fn note_live(&self) {
        let until = self.now().saturating_add(LIVE_FOR.as_millis() as u64);
        self.shared.live_until.fetch_max(until, Ordering::Relaxed);
    }

    /// Does one part of an import. While there are live calls, it waits for its turn, and pauses after the part for as
    /// long as the part took.
    pub(crate) async fn bulk<T>(&self, part: impl Future<Output = T>) -> T {
        if !self.is_live() {
            return part.await;
        }
        let _turn = self.shared.turn.lock().await;
        let started = Instant::now();
        let done = part.await;
        if self.is_live() {
            sleep(started.elapsed().min(PAUSE_MAX)).await;
        }
        done
    }

    fn is_live(&self) -> bool {
        self.now() < self.shared.live_until.load(Ordering::Relaxed)
    }

    fn now(&self) -> u64 {
        self.shared.started.elapsed().as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: Duration = Duration::from_millis(100);

    /// Time that `count` parts take that are started at once.
    async fn time(pace: &Pace, count: usize) -> Duration {
        let started = Instant::now();
        let parts = (0..count).map(|_| pace.bulk(async { sleep(PART).await }));
        futures::future::join_all(parts).await;
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn imports_take_turns_with_pauses_only_beside_live_calls() {
        let pace = Pace::new();
        assert_eq!(time(&pace, 4).await, PART);
        pace.note_live();
        assert_eq!(time(&pace, 4).await, 8 * PART);
        // The live call was long ago.
        tokio::time::advance(LIVE_FOR).await;
        assert_eq!(time(&pace, 4).await, PART);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_bounded() {
        let pace = Pace::new();
        pace.note_live();
        let slow = pace.bulk(async {
            sleep(Duration::from_mins(1)).await;
            pace.note_live();
        });
        let started = Instant::now();
        slow.await;
        assert_eq!(started.elapsed(), Duration::from_mins(1) + PAUSE_MAX);
    }
}
