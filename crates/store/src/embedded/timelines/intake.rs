//! The two buffers: one being filled, one being written.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use herald_model::{Recipients, UserKey};
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::buffer::Buffer;
use crate::{Durable, Error, ErrorKind, Result, embedded::shared_error::SharedError};

/// Takes deliveries in and hands them out in runs.
///
/// *Invariant:* a delivery taken in is in `filling`, then in `flushing`, and leaves that only after it can be read from disk,
/// or after everyone who waits was told that it can't be written.
pub(super) struct Intake {
    state: Mutex<State>,
    /// Wakes the flusher.
    work: Condvar,
    /// Wakes those who wait for room.
    room: Notify,
    run_pairs_max: usize,
    when: FlushWhen,
}

/// When a run that has room left is written.
pub(super) struct FlushWhen {
    /// It is so old.
    pub(super) interval: Duration,
    /// It has so many chunks, and is small.
    pub(super) chunks: usize,
    /// So many pairs at most are small.
    pub(super) small_pairs_max: usize,
}

impl FlushWhen {
    fn has_enough(&self, run: &Buffer) -> bool {
        run.chunks() >= self.chunks && run.pairs() <= self.small_pairs_max
    }
}

#[derive(Default)]
struct State {
    filling: Buffer,
    flushing: Option<Arc<Buffer>>,
    /// An empty buffer that has its memory already.
    spare: Option<Buffer>,
    /// Someone waits for room or for the flush.
    hurry: bool,
    closing: bool,
    failed: Option<SharedError>,
}

impl State {
    fn check(&self) -> Result<()> {
        match &self.failed {
            Some(failure) => Err(failure.error()),
            None if self.closing => Err(Error::new(ErrorKind::Unavailable, "the timelines are closed")),
            None => Ok(()),
        }
    }
}

impl Intake {
    /// Two empty buffers.
    pub(super) fn new(run_pairs_max: usize, when: FlushWhen) -> Self {
        Self {
            state: Mutex::default(),
            work: Condvar::new(),
            room: Notify::new(),
            run_pairs_max,
            when,
        }
    }

    /// Takes a post in; waits while both buffers are full.
    pub(super) async fn put(&self, post: u64, recipients: &Recipients) -> Result<Durable> {
        loop {
            let room = self.room.notified();
            if let Some(durable) = self.try_put(post, recipients)? {
                return Ok(durable);
            }
            room.await;
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
            state.hurry = true;
        }
        let durable = fits.then(|| state.filling.durable());
        let enough = self.when.has_enough(&state.filling);
        drop(state);
        if before == 0 || !fits || enough {
            self.work.notify_one();
        }
        Ok(durable)
    }

    /// Adds a user's posts in the buffers to `out`. Look on the disk *after* this, so that none is missed on its way there.
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

    /// Waits for the next run to write: the buffer is full, old enough, has enough chunks, or is wanted. `None` when closed and all is written.
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
            let due = since + self.when.interval;
            if state.hurry
                || state.closing
                || state.filling.pairs() >= self.run_pairs_max
                || self.when.has_enough(&state.filling)
                || Instant::now() >= due
            {
                break;
            }
            self.work.wait_until(&mut state, due);
        }
        state.hurry = false;
        let empty = state.spare.take().unwrap_or_default();
        let full = Arc::new(std::mem::replace(&mut state.filling, empty));
        state.flushing = Some(Arc::clone(&full));
        drop(state);
        self.room.notify_waiters();
        Some(full)
    }

    /// The run can be read from disk now, or it can't be written. `fatal`: nothing can be written from now on.
    /// The memory is kept for the next run when `reuse` says so.
    pub(super) fn done(
        &self,
        run: Arc<Buffer>,
        outcome: std::result::Result<(), SharedError>,
        fatal: bool,
        reuse: bool,
    ) {
        let mut state = self.state.lock();
        if let (true, Err(failure)) = (fatal, &outcome) {
            state.failed.get_or_insert_with(|| failure.clone());
        }
        state.flushing = None;
        drop(state);
        run.resolve(outcome);
        // A reader may hold it still; then it is dropped by that one.
        let spare = Arc::try_unwrap(run).ok().filter(|_| reuse).map(Buffer::reuse);
        self.state.lock().spare = spare;
        self.room.notify_waiters();
    }

    /// Refuses deliveries from now on; what was taken in is still written.
    pub(super) fn close(&self) {
        self.state.lock().closing = true;
        self.work.notify_one();
        self.room.notify_waiters();
    }

    /// The flusher is gone: nothing that is still here will be written.
    pub(super) fn abandon(&self, failure: &SharedError) {
        let mut state = self.state.lock();
        state.failed.get_or_insert_with(|| failure.clone());
        state.closing = true;
        let left = [
            Some(Arc::new(std::mem::take(&mut state.filling))),
            state.flushing.take(),
        ];
        drop(state);
        for buffer in left.into_iter().flatten() {
            buffer.resolve(Err(failure.clone()));
        }
        self.room.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;

    #[test]
    fn a_small_run_with_many_chunks_is_written_at_once() {
        let when = FlushWhen {
            interval: Duration::from_hours(1),
            chunks: 3,
            small_pairs_max: 10,
        };
        let intake = Intake::new(1_000, when);
        let put =
            |post| drop(block_on(intake.put(post, &Recipients::from_sorted((1..=2).map(UserKey)))).unwrap());
        // Many times, so that some of them meet one who waits already.
        for _ in 0..100 {
            std::thread::scope(|scope| {
                put(1);
                put(2);
                let next = scope.spawn(|| intake.next());
                std::thread::yield_now();
                put(3);
                let run = next.join().unwrap().unwrap();
                assert_eq!(run.chunks(), 3);
                intake.done(run, Ok(()), false, false);
            });
        }
    }

    #[test]
    fn a_large_run_waits_for_more() {
        let when = FlushWhen {
            interval: Duration::ZERO,
            chunks: 3,
            small_pairs_max: 10,
        };
        let mut run = Buffer::default();
        for post in 1..=3 {
            assert!(!when.has_enough(&run));
            run.push(post, &Recipients::from_sorted((1..=3).map(UserKey)));
        }
        assert!(when.has_enough(&run));
        run.push(4, &Recipients::from_sorted((1..=3).map(UserKey)));
        assert!(!when.has_enough(&run));
    }
}
