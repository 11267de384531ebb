//! The two buffers: one is filled while the other is flushed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use herald_model::{Recipients, UserKey};
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::buffer::Buffer;
use crate::{Durable, Error, ErrorKind, Result, embedded::shared_error::SharedError};

/// Accepts deliveries and passes them to the flusher in runs.
///
/// *Invariant:* an accepted delivery is in `filling`, then in `flushing`, and leaves `flushing` only after it is
/// readable on disk or its waiters have received the write error.
pub(super) struct Intake {
    state: Mutex<State>,
    /// Wakes the flusher.
    work: Condvar,
    /// Wakes callers of `put` that wait for capacity.
    capacity: Notify,
    run_pairs_max: usize,
    policy: FlushPolicy,
}

/// When a run is flushed before it is full.
pub(super) struct FlushPolicy {
    /// Maximum age of a run.
    pub(super) interval: Duration,
    /// Number of chunks after which a small run is flushed.
    pub(super) chunks: usize,
    /// Maximum number of pairs of a small run.
    pub(super) small_pairs_max: usize,
}

impl FlushPolicy {
    fn reached_chunk_limit(&self, run: &Buffer) -> bool {
        run.chunks() >= self.chunks && run.pairs() <= self.small_pairs_max
    }
}

#[derive(Default)]
struct State {
    filling: Buffer,
    flushing: Option<Arc<Buffer>>,
    /// An empty buffer with allocated memory.
    spare: Option<Buffer>,
    /// A caller waits for capacity: flush without waiting for the policy.
    flush_requested: bool,
    closing: bool,
    failed: Option<SharedError>,
}

impl State {
    fn check(&self) -> Result<()> {
        match &self.failed {
            Some(error) => Err(error.error()),
            None if self.closing => Err(Error::new(ErrorKind::Unavailable, "the timelines are closed")),
            None => Ok(()),
        }
    }
}

impl Intake {
    /// Creates two empty buffers.
    pub(super) fn new(run_pairs_max: usize, policy: FlushPolicy) -> Self {
        Self {
            state: Mutex::default(),
            work: Condvar::new(),
            capacity: Notify::new(),
            run_pairs_max,
            policy,
        }
    }

    /// Checks that deliveries are accepted.
    pub(super) fn check(&self) -> Result<()> {
        self.state.lock().check()
    }

    /// Accepts a chunk: one post and its recipients. Waits while both buffers are full. The returned future resolves
    /// when the chunk is durable.
    pub(super) async fn put(&self, post: u64, recipients: &Recipients) -> Result<Durable> {
        loop {
            let capacity = self.capacity.notified();
            if let Some(durable) = self.try_put(post, recipients)? {
                return Ok(durable);
            }
            capacity.await;
        }
    }

    fn try_put(&self, post: u64, recipients: &Recipients) -> Result<Option<Durable>> {
        let mut state = self.state.lock();
        state.check()?;
        let before = state.filling.pairs();
        let fits = before == 0 || before + recipients.len() as usize <= self.run_pairs_max;
        if fits {
            state.filling.push(post, recipients);
        } else {
            state.flush_requested = true;
        }
        let durable = fits.then(|| state.filling.durable());
        let at_chunk_limit = self.policy.reached_chunk_limit(&state.filling);
        drop(state);
        if before == 0 || !fits || at_chunk_limit {
            self.work.notify_one();
        }
        Ok(durable)
    }

    /// Appends a user's posts in the buffers to `out`. Read the disk *after* this call: a run that is flushed in
    /// between would be missed otherwise.
    pub(super) fn posts_of(&self, user: UserKey, out: &mut Vec<u64>) {
        let flushing = {
            let state = self.state.lock();
            state.filling.posts_of(user, out);
            state.flushing.clone()
        };
        if let Some(flushing) = flushing {
            flushing.posts_of(user, out);
        }
    }

    /// Waits for the next run to flush: until the buffer is full, the policy applies or a flush is requested. `None`
    /// when the intake is closed and empty.
    pub(super) fn next(&self) -> Option<Arc<Buffer>> {
        let mut state = self.state.lock();
        loop {
            let Some(since) = state.filling.since() else {
                if state.closing {
                    return None;
                }
                self.work.wait(&mut state);
                continue;
            };
            let due = since + self.policy.interval;
            if state.flush_requested
                || state.closing
                || state.filling.pairs() >= self.run_pairs_max
                || self.policy.reached_chunk_limit(&state.filling)
                || Instant::now() >= due
            {
                break;
            }
            self.work.wait_until(&mut state, due);
        }
        state.flush_requested = false;
        let empty = state.spare.take().unwrap_or_default();
        let full = Arc::new(std::mem::replace(&mut state.filling, empty));
        state.flushing = Some(Arc::clone(&full));
        drop(state);
        self.capacity.notify_waiters();
        Some(full)
    }

    /// Reports the result of flushing a run. On success the run must be readable on disk. A `fatal` error fails all
    /// later deliveries. `reuse` keeps the run's memory for the next run.
    pub(super) fn finish_flush(
        &self,
        run: Arc<Buffer>,
        outcome: std::result::Result<(), SharedError>,
        fatal: bool,
        reuse: bool,
    ) {
        let mut state = self.state.lock();
        if let (true, Err(error)) = (fatal, &outcome) {
            state.failed.get_or_insert_with(|| error.clone());
        }
        state.flushing = None;
        drop(state);
        run.resolve(outcome);
        // A reader may still hold the run; then the reader drops it.
        let spare = Arc::try_unwrap(run).ok().filter(|_| reuse).map(Buffer::reuse);
        self.state.lock().spare = spare;
        self.capacity.notify_waiters();
    }

    /// Rejects new deliveries; accepted deliveries are still flushed.
    pub(super) fn close(&self) {
        self.state.lock().closing = true;
        self.work.notify_one();
        self.capacity.notify_waiters();
    }

    /// Fails all deliveries that are not flushed, because the flusher has ended.
    pub(super) fn abandon(&self, error: &SharedError) {
        let mut state = self.state.lock();
        state.failed.get_or_insert_with(|| error.clone());
        state.closing = true;
        let unflushed = [
            Some(Arc::new(std::mem::take(&mut state.filling))),
            state.flushing.take(),
        ];
        drop(state);
        for buffer in unflushed.into_iter().flatten() {
            buffer.resolve(Err(error.clone()));
        }
        self.capacity.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;

    #[test]
    fn a_small_run_is_flushed_at_the_chunk_limit() {
        let policy = FlushPolicy {
            interval: Duration::from_hours(1),
            chunks: 3,
            small_pairs_max: 10,
        };
        let intake = Intake::new(1_000, policy);
        let put =
            |post| drop(block_on(intake.put(post, &Recipients::from_sorted((1..=2).map(UserKey)))).unwrap());
        // Repeated so that some rounds find the flusher already waiting.
        for _ in 0..100 {
            std::thread::scope(|scope| {
                put(1);
                put(2);
                let next = scope.spawn(|| intake.next());
                std::thread::yield_now();
                put(3);
                let run = next.join().unwrap().unwrap();
                assert_eq!(run.chunks(), 3);
                intake.finish_flush(run, Ok(()), false, false);
            });
        }
    }

    #[test]
    fn a_large_run_ignores_the_chunk_limit() {
        let policy = FlushPolicy {
            interval: Duration::ZERO,
            chunks: 3,
            small_pairs_max: 10,
        };
        let mut run = Buffer::default();
        for post in 1..=3 {
            assert!(!policy.reached_chunk_limit(&run));
            run.push(post, &Recipients::from_sorted((1..=3).map(UserKey)));
        }
        assert!(policy.reached_chunk_limit(&run));
        run.push(4, &Recipients::from_sorted((1..=3).map(UserKey)));
        assert!(!policy.reached_chunk_limit(&run));
    }
}
