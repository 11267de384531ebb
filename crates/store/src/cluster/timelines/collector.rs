//! Collects deliveries of many posts, so that one command appends a block of many deliveries.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use herald_model::Recipients;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::{
    Durable, Error, ErrorKind, Result,
    embedded::{shared_error::SharedError, timelines::buffer::Buffer},
};

/// Deliveries a second from which on a run waits for more deliveries. Below it a wait would only cost latency.
const BUSY_PAIRS_PER_S: f64 = 50_000.0;

/// A run is written when no delivery came for this long: all callers wait for it.
const STALL: Duration = Duration::from_millis(5);

/// The deliveries of one run.
pub(super) struct Run {
    pub(super) buffer: Buffer,
    /// Resolves when the run is durable, after `buffer` has resolved as readable.
    durable: watch::Sender<Option<std::result::Result<(), SharedError>>>,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            buffer: Buffer::default(),
            durable: watch::Sender::new(None),
        }
    }
}

impl Run {
    /// Ends the wait of `deliver`: the run is readable, or its write has failed.
    pub(super) fn resolve_readable(&self, outcome: std::result::Result<(), SharedError>) {
        self.buffer.resolve(outcome);
    }

    /// Ends the wait for durability.
    pub(super) fn resolve_durable(&self, outcome: std::result::Result<(), SharedError>) {
        self.durable.send_replace(Some(outcome));
    }

    fn durable(&self) -> Durable {
        let mut outcome = self.durable.subscribe();
        Box::pin(async move {
            match outcome.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(Err(failure))) => Err(failure.error()),
                Ok(_) => Ok(()),
                Err(_) => Err(closed()),
            }
        })
    }
}

/// The two ends of a delivery that waits in a run.
pub(super) struct Accepted {
    /// Resolves when readers see the delivery.
    pub(super) readable: Durable,
    /// Resolves when the delivery is durable.
    pub(super) durable: Durable,
}

/// When a run is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    /// Maximum age of a run.
    pub(super) delay: Duration,
    /// Deliveries in a run that does not wait for more.
    pub(super) pairs: usize,
    /// Maximum number of deliveries that wait or are being written.
    pub(super) pending_max: usize,
}

/// Accepts deliveries and passes them on in runs.
pub(super) struct Collector {
    state: Mutex<State>,
    policy: Policy,
    /// Wakes the flusher.
    work: Notify,
    /// Wakes callers of `put` that wait for capacity.
    capacity: Notify,
}

#[derive(Default)]
struct State {
    filling: Run,
    /// Deliveries in runs that are being written.
    writing: usize,
    /// An empty buffer with allocated memory.
    spare: Option<Buffer>,
    closing: bool,
}

impl Collector {
    pub(super) fn new(policy: Policy) -> Self {
        Self {
            state: Mutex::default(),
            policy,
            work: Notify::new(),
            capacity: Notify::new(),
        }
    }

    /// Accepts one post and its recipients. Waits while too many deliveries are pending.
    pub(super) async fn put(&self, post: u64, recipients: &Recipients) -> Result<Accepted> {
        loop {
            let capacity = self.capacity.notified();
            tokio::pin!(capacity);
            capacity.as_mut().enable();
            if let Some(accepted) = self.try_put(post, recipients)? {
                return Ok(accepted);
            }
            capacity.await;
        }
    }

    fn try_put(&self, post: u64, recipients: &Recipients) -> Result<Option<Accepted>> {
        let mut state = self.state.lock();
        if state.closing {
            return Err(closed());
        }
        let pending = state.writing + state.filling.buffer.pairs();
        if pending > 0 && pending + recipients.len() as usize > self.policy.pending_max {
            return Ok(None);
        }
        let before = state.filling.buffer.pairs();
        state.filling.buffer.push(post, recipients);
        let accepted = Accepted {
            readable: state.filling.buffer.durable(),
            durable: state.filling.durable(),
        };
        let full = state.filling.buffer.pairs() >= self.policy.pairs;
        drop(state);
        if before == 0 || full {
            self.work.notify_one();
        }
        Ok(Some(accepted))
    }

    /// Waits for the next run. `None` when closed and empty.
    pub(super) async fn next(&self, load: &mut Load) -> Option<Arc<Run>> {
        let mut seen = 0;
        loop {
            let (pairs, since) = {
                let mut state = self.state.lock();
                let pairs = state.filling.buffer.pairs();
                let since = state.filling.buffer.since();
                match since {
                    None if state.closing => return None,
                    Some(since)
                        if state.closing
                            || pairs >= self.policy.pairs
                            || pairs == seen
                            || !load.is_busy()
                            || since.elapsed() >= self.policy.delay =>
                    {
                        load.add(pairs);
                        return Some(Self::take(&mut state));
                    }
                    _ => (pairs, since),
                }
            };
            match since {
                None => self.work.notified().await,
                Some(since) => {
                    seen = pairs;
                    let left = self.policy.delay.saturating_sub(since.elapsed());
                    // A full run ends the wait.
                    let _ = tokio::time::timeout(left.min(STALL), self.work.notified()).await;
                }
            }
        }
    }

    fn take(state: &mut State) -> Arc<Run> {
        let next = Run {
            buffer: state.spare.take().unwrap_or_default(),
            ..Run::default()
        };
        let run = std::mem::replace(&mut state.filling, next);
        state.writing += run.buffer.pairs();
        Arc::new(run)
    }

    /// Ends a run, which is resolved.
    pub(super) fn finish(&self, run: Arc<Run>) {
        let pairs = run.buffer.pairs();
        let spare = Arc::try_unwrap(run).ok().map(|run| run.buffer.reuse());
        let mut state = self.state.lock();
        state.writing -= pairs;
        if spare.is_some() {
            state.spare = spare;
        }
        drop(state);
        self.capacity.notify_waiters();
    }

    /// Rejects new deliveries; accepted ones are still written.
    pub(super) fn close(&self) {
        self.state.lock().closing = true;
        self.work.notify_one();
        self.capacity.notify_waiters();
    }
}

/// How many deliveries a second came lately.
pub(super) struct Load {
    per_s: f64,
    last: Instant,
}

impl Load {
    pub(super) fn new() -> Self {
        Self {
            per_s: 0.0,
            last: Instant::now(),
        }
    }

    fn add(&mut self, pairs: usize) {
        let seconds = self.last.elapsed().as_secs_f64().max(0.001);
        self.last = Instant::now();
        // A run after a pause tells nothing about the time before it.
        let keep = if seconds > 1.0 { 0.0 } else { 0.5 };
        self.per_s = keep * self.per_s + (1.0 - keep) * pairs as f64 / seconds;
    }

    fn is_busy(&self) -> bool {
        self.per_s > BUSY_PAIRS_PER_S
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "the timelines are closed")
}

#[cfg(test)]
mod tests {
    use herald_model::UserKey;

    use super::*;

    fn recipients(count: u32) -> Recipients {
        Recipients::from_sorted((1..=count).map(UserKey))
    }

    fn collector(pairs: usize, pending_max: usize) -> Collector {
        Collector::new(Policy {
            delay: Duration::from_hours(1),
            pairs,
            pending_max,
        })
    }

    #[tokio::test]
    async fn a_single_delivery_is_written_at_once() {
        let collector = collector(100, 100);
        let accepted = collector.put(1, &recipients(3)).await.unwrap();
        let run = collector.next(&mut Load::new()).await.unwrap();
        assert_eq!(run.buffer.pairs(), 3);
        run.resolve_readable(Ok(()));
        run.resolve_durable(Ok(()));
        accepted.readable.await.unwrap();
        accepted.durable.await.unwrap();
    }

    #[tokio::test]
    async fn put_waits_while_too_many_are_pending() {
        let collector = collector(10, 10);
        let _first = collector.put(1, &recipients(8)).await.unwrap();
        let run = collector.next(&mut Load::new()).await.unwrap();
        let more = recipients(8);
        let mut second = std::pin::pin!(collector.put(2, &more));
        assert!(futures::poll!(second.as_mut()).is_pending());
        collector.finish(run);
        assert!(futures::poll!(second).is_ready());
    }

    #[tokio::test]
    async fn a_chunk_larger_than_the_limit_is_accepted() {
        let collector = collector(10, 10);
        collector.put(1, &recipients(1_000)).await.unwrap();
    }

    #[tokio::test]
    async fn close_gives_out_the_last_run_and_rejects_deliveries() {
        let collector = collector(100, 100);
        let _accepted = collector.put(1, &recipients(3)).await.unwrap();
        collector.close();
        assert!(collector.put(2, &recipients(3)).await.is_err());
        let mut load = Load::new();
        assert!(collector.next(&mut load).await.is_some());
        assert!(collector.next(&mut load).await.is_none());
    }
}
