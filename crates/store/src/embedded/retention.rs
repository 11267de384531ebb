//! What has to be done from time to time: forgetting what is too old.

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

/// How long between two times.
const EVERY: Duration = Duration::from_mins(1);

/// Those that have something to forget.
#[derive(Clone)]
pub(super) struct Retention {
    pub(super) follows: Arc<EmbeddedFollows>,
    pub(super) posts: Arc<EmbeddedPosts>,
    pub(super) timelines: Arc<EmbeddedTimelines>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) dead_letters: Arc<EmbeddedDeadLetters>,
    pub(super) totals: Arc<EmbeddedTotals>,
    /// How long a timeline shows a post.
    pub(super) timeline_keep: Duration,
    /// How long it is known what became of a post's deliveries, and which messages were given up.
    pub(super) ledger_keep: Duration,
    /// How long it is known what was done about those.
    pub(super) dead_letter_operation_keep: Duration,
}

impl Retention {
    /// Forgets what is too old at a moment.
    pub(super) async fn run(&self, now: Timestamp) -> Result<()> {
        let versions = self.follows.trim(now).await?;
        let requests = self.posts.trim(now).await?;
        let shown = self.posts.first_since(now.minus(self.timeline_keep))?;
        self.timelines.set_oldest(shown)?;
        let known = self.posts.first_since(now.minus(self.ledger_keep))?;
        let ledger_rows = self.ledger.trim(known).await?;
        // An event that was given up can come again as long as its dead letter is kept, with chunks that were counted.
        let told = self.posts.first_since(now.minus(2 * self.ledger_keep))?;
        let counted_chunks = self.totals.trim(told).await?;
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
                "forgot what is too old"
            );
        }
        Ok(())
    }
}

/// The thread that does them, as long as this lives.
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
                while stopped.recv_timeout(EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                    if let Err(error) = block_on(retention.run(Timestamp::now())) {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "could not forget what is too old"
                        );
                    }
                }
            })
            .map_err(|e| io_error("can't start the maintenance thread".into(), e))?;
        Ok(Self {
            stop: Mutex::new(Some(stop)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Ends the thread. Again: nothing.
    pub(super) fn stop(&self) {
        drop(self.stop.lock().take());
        if let Some(thread) = self.thread.lock().take() {
            // A panic in it was printed already.
            let _ = thread.join();
        }
    }
}

impl Drop for RetentionThread {
    fn drop(&mut self) {
        self.stop();
    }
}
