//! Retention: removing data that is older than its configured age.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::executor::block_on;
use herald_model::time::Timestamp;

use super::{
    blocking::read_blocking, clock::Clock, dead_letters::EmbeddedDeadLetters, follows::EmbeddedFollows,
    ledger::Ledger, posts::EmbeddedPosts, timelines::EmbeddedTimelines, totals::EmbeddedTotals,
};
use crate::{ClockCheck, Metrics, Result};

/// The stores with retention, and their limits: the embedded engine's [`Retention`](crate::Retention).
#[derive(Clone)]
pub(super) struct Retention {
    pub(super) clock: Clock,
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
    /// Retention of the texts of deleted posts, from the deletion.
    pub(super) deleted_text_keep: Duration,
    /// Retention of posts, from their acceptance.
    pub(super) post_keep: Option<Duration>,
    pub(super) metrics: Metrics,
}

impl Retention {
    async fn run(&self, now: Timestamp) -> Result<()> {
        let versions = self.follows.trim(now).await?;
        let requests = self.posts.trim(now).await?;
        let shown = self.timelines.oldest_kept();
        let oldest_shown = self.posts.first_retained(shown, now.minus(self.timeline_keep))?;
        self.timelines.raise_oldest_kept(oldest_shown)?;
        let recorded = self.ledger.first_post()?;
        let oldest_recorded = self.posts.first_retained(recorded, now.minus(self.ledger_keep))?;
        let ledger_rows = self.ledger.trim(oldest_recorded).await?;
        // A dead-lettered event can be redriven as long as its dead letter exists, and its chunks must not be counted
        // again.
        let counted = self.totals.first_post()?;
        let counted_since = now.minus(2 * self.ledger_keep);
        let oldest_counted = self.posts.first_retained(counted, counted_since)?;
        let counted_chunks = self.totals.trim(oldest_counted).await?;
        let dead_letters = self.dead_letters.trim(
            now.minus(self.ledger_keep),
            now.minus(self.dead_letter_operation_keep),
        );
        let dead_letters = dead_letters.await?;
        let texts = self.posts.trim_texts(now.minus(self.deleted_text_keep)).await?;
        self.metrics.add_removed("texts", texts as u64);
        let posts = match self.post_keep {
            Some(keep) => self.posts.trim_posts(now.minus(keep), counted_since).await?,
            None => 0,
        };
        self.metrics.add_removed("posts", posts as u64);
        if versions + requests + ledger_rows + counted_chunks + texts + posts > 0 || dead_letters > 0 {
            tracing::debug!(
                versions,
                requests,
                ledger_rows,
                counted_chunks,
                dead_letters,
                texts,
                posts,
                "removed data past its retention"
            );
        }
        Ok(())
    }
}

#[async_trait]
impl crate::Retention for Retention {
    async fn trim(&self, now: Timestamp) -> Result<()> {
        // Reads and deletes many rows, so it must not run on the threads of the async runtime.
        let retention = self.clone();
        read_blocking("the rows past their retention", move || {
            block_on(retention.run(now))
        })
        .await
    }

    async fn observe_clock(&self, now: Timestamp) -> Result<ClockCheck> {
        self.clock.observe(now, self.posts.last_accepted_at()?).await
    }
}
