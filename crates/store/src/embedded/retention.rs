//! Retention: removing data that is older than its configured age.

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use futures::executor::block_on;
use herald_model::time::Timestamp;
use parking_lot::Mutex;

use super::{
    dead_letters::EmbeddedDeadLetters, dir::io_error, follows::EmbeddedFollows, ledger::Ledger,
    posts::EmbeddedPosts, timelines::EmbeddedTimelines, totals::EmbeddedTotals,
};
use crate::Result;

/// Interval between two runs.
const INTERVAL: Duration = Duration::from_mins(1);

/// The stores with retention, and their limits.
#[derive(Clone)]
pub(super) struct Retention {
    pub(super) follows: Arc<EmbeddedFollows>,
    pub(super) posts: Arc<EmbeddedPosts>,
    pub(super) timelines: Arc<EmbeddedTimelines>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) dead_letters: Arc<EmbeddedDeadLetters>,
    pub(super) totals: Arc<EmbeddedTotals>,
    /// Retention of posts on timelines, from their acceptance.
    pub(super) timeline_keep: Duration,
    /// Retention of ledger rows, from the acceptance of their post, and of dead letters, from their arrival.
    pub(super) ledger_keep: Duration,
    /// Retention of operations on dead letters.
    pub(super) dead_letter_operation_keep: Duration,
}

impl Retention {
    /// Removes data whose retention has ended at `now`.
    pub(super) async fn run(&self, now: Timestamp) -> Result<()> {
        let versions = self.follows.trim(now).await?;
        let requests = self.posts.trim(now).await?;
        let oldest_shown = self.posts.first_since(now.minus(self.timeline_keep))?;
        self.timelines.raise_oldest_kept(oldest_shown)?;
        let oldest_recorded = self.posts.first_since(now.minus(self.ledger_keep))?;
        let ledger_rows = self.ledger.trim(oldest_recorded).await?;
        // A dead-lettered event can be redriven as long as its dead letter exists, and its chunks must not be counted
        // again.
        let oldest_counted = self.posts.first_since(now.minus(2 * self.ledger_keep))?;
        let counted_chunks = self.totals.trim(oldest_counted).await?;
        let dead_letters = self.dead_letters.trim(
            now.minus(self.ledger_keep),
            now.minus(self.dead_letter_operation_keep),
        );
        let dead_letters = dead_letters.await?;
        if versions + requests + ledger_rows + counted_chunks > 0 || dead_letters > 0 {
            tracing::debug!(
                versions,
                requests,
                ledger_rows,
                counted_chunks,
                dead_letters,
                "removed data past its retention"
            );
        }
        Ok(())
    }
}

/// The thread that runs [`Retention`]. Dropping it ends the thread.
pub(super) struct RetentionThread {
    stop: Mutex<Option<mpsc::Sender<()>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl RetentionThread {
    /// Starts the thread.
    pub(super) fn start(retention: Retention) -> Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("store-retention".into())
            .spawn(move || {
                while stopped.recv_timeout(INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
                    if let Err(error) = block_on(retention.run(Timestamp::now())) {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "can't remove data that is older than its retention; retrying in a minute"
                        );
                    }
                }
            })
            .map_err(|e| io_error("can't start the retention thread".into(), e))?;
        Ok(Self {
            stop: Mutex::new(Some(stop)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Ends the thread. Idempotent.
    pub(super) fn stop(&self) {
        drop(self.stop.lock().take());
        if let Some(thread) = self.thread.lock().take() {
            // The panic hook has reported a panic of the thread.
            let _ = thread.join();
        }
    }
}

impl Drop for RetentionThread {
    fn drop(&mut self) {
        self.stop();
    }
}
