//! Delivers the newest posts of an author to new followers.

use std::{sync::Arc, time::Duration};

use futures::future::try_join_all;
use herald_failure::isolate;
use herald_mesh::{Delivery, Disposition, Mesh, Wait, consumers, streams};
use herald_model::{PostId, Recipients, UserKey, time::Timestamp};
use herald_proto::mesh_v1::{Backfill, TimelineChunk};
use herald_store::{Ledger, Posts, Timelines};
use tokio::time::Instant;

use crate::{
    adapters::Watchers,
    domain::{isolated_reason, without_suppressed},
    error::{DeliverError, Failure},
};

/// Time that a backfill waits in the handler for the archive, which is usually milliseconds behind. Then it waits in the
/// delay queue, where it holds no place of the lane.
const HANDLER_WAIT_MAX: Duration = Duration::from_secs(1);
/// Bounds of the interval between two readings of the archive's progress; it doubles. Each waiting backfill asks the
/// broker.
const READ_INTERVAL_MIN: Duration = Duration::from_millis(50);
const READ_INTERVAL_MAX: Duration = Duration::from_millis(500);
/// Bounds of a wait in the delay queue; each wait is twice as long as the one before.
const WAIT_MIN: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Delivers backfills.
#[derive(Clone)]
pub(crate) struct Backfiller {
    pub(crate) mesh: Mesh,
    pub(crate) watchers: Watchers,
    pub(crate) posts: Arc<dyn Posts>,
    pub(crate) timelines: Arc<dyn Timelines>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) posts_max: usize,
}

impl Backfiller {
    /// Writes the newest posts of the author to the timelines of `recipients`. With `bisect`, isolates the recipients
    /// that cause a permanent error and delivers to all others.
    pub(crate) async fn backfill(
        &self,
        delivery: &Delivery,
        request: &Backfill,
        recipients: &Recipients,
        bisect: bool,
    ) -> Result<(), Failure> {
        // A post accepted just before the follow may not be archived yet, and fan-out does not deliver it to the
        // follower.
        self.wait_for_archive(delivery, request.posts_sequence).await?;
        // Only posts up to the moment of the follow: newer posts arrive through fan-out, or must not arrive because the
        // follower has unfollowed since.
        let (author, last) = (UserKey(request.author_key), PostId(request.posts_sequence));
        let posts = self.posts.newest_by_author(author, last, self.posts_max).await?;
        let count = recipients.len();
        let isolated = isolate(count as usize, bisect, |part| {
            self.deliver_part(author, &posts, recipients.part(part))
        })
        .await;
        if let Some(failure) = isolated.stopped {
            return Err(failure.into());
        }
        match isolated.failed.first() {
            Some((_, reason)) => {
                let failed = isolated.failed.len() as u32;
                Err(Disposition::term(isolated_reason(reason, failed, count)).into())
            }
            None => Ok(()),
        }
    }

    /// Waits until the archive has all posts up to `sequence`. An archive that is away for long costs no attempt: the
    /// backfill continues from the delay queue, or waits here while that can't take it.
    async fn wait_for_archive(&self, delivery: &Delivery, sequence: u64) -> Result<(), Failure> {
        let started = Instant::now();
        let mut interval = READ_INTERVAL_MIN;
        loop {
            let archived = self.mesh.ack_floor(streams::POSTS, consumers::ARCHIVE).await?;
            if archived >= sequence {
                return Ok(());
            }
            if started.elapsed() >= HANDLER_WAIT_MAX && delivery.can_wait().await {
                let waits = delivery.waits();
                return Err(Disposition::Wait(Wait {
                    after: wait_after(waits),
                    number: waits.saturating_add(1),
                    payload: None,
                    reason: format!("archive watermark is {archived}, the backfill needs {sequence}"),
                    failed: None,
                })
                .into());
            }
            tokio::time::sleep(interval).await;
            interval = (2 * interval).min(READ_INTERVAL_MAX);
        }
    }

    async fn deliver_part(
        &self,
        author: UserKey,
        posts: &[PostId],
        recipients: Recipients,
    ) -> Result<(), DeliverError> {
        // The audit needs this record to explain the post on the timeline, and a rebuild of a timeline that is not
        // written now needs it to add the post. So it is written first.
        self.ledger.record_backfill(posts, &recipients).await?;
        let writes = posts
            .iter()
            .map(|post| self.timelines.deliver(*post, recipients.clone()));
        let delivered = try_join_all(writes).await?;
        let mut durable = Vec::with_capacity(delivered.len());
        for (post, delivered) in posts.iter().zip(delivered) {
            let written = without_suppressed(&recipients, &delivered.suppressed);
            if !written.is_empty() {
                let live = TimelineChunk::new(*post, author, Timestamp(0), &written);
                self.watchers.notify(live).await;
            }
            durable.push(delivered.durable);
        }
        try_join_all(durable).await?;
        Ok(())
    }
}

/// Delay of the next wait after this number of waits.
fn wait_after(waits: u32) -> Duration {
    WAIT_MIN.saturating_mul(2_u32.saturating_pow(waits)).min(WAIT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_their_bound() {
        let seconds = [0, 1, 4, 5, 100].map(|waits| wait_after(waits).as_secs());
        assert_eq!(seconds, [1, 2, 16, 30, 30]);
    }
}
