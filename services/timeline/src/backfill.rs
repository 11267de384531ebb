//! Delivers the newest posts of an author to new followers.

use std::{sync::Arc, time::Duration};

use futures::future::try_join_all;
use herald_failure::isolate;
use herald_mesh::{Disposition, Mesh, consumers, streams};
use herald_model::{PostId, Recipients, UserKey, time::Timestamp};
use herald_proto::mesh_v1::{Backfill, TimelineChunk};
use herald_store::{Ledger, Posts, Timelines};

use crate::{adapters::Watchers, domain::isolated_reason, error::DeliverError};

/// Delay before a retry while the archive is behind.
const ARCHIVE_WAIT: Duration = Duration::from_millis(500);

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
        request: &Backfill,
        recipients: &Recipients,
        bisect: bool,
    ) -> Result<(), Disposition> {
        // A post accepted just before the follow may not be archived yet, and fan-out does not deliver it to the
        // follower.
        let archived = self.mesh.ack_floor(streams::POSTS, consumers::ARCHIVE).await?;
        if archived < request.posts_sequence {
            let reason = format!(
                "archive watermark is {archived}, the backfill needs {}",
                request.posts_sequence
            );
            return Err(Disposition::retry_after(ARCHIVE_WAIT, reason));
        }
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
                Err(Disposition::term(isolated_reason(reason, failed, count)))
            }
            None => Ok(()),
        }
    }

    async fn deliver_part(
        &self,
        author: UserKey,
        posts: &[PostId],
        recipients: Recipients,
    ) -> Result<(), DeliverError> {
        // The audit needs this record to explain the post on the timeline, so it is written first.
        self.ledger.record_backfill(posts, &recipients).await?;
        let writes = posts
            .iter()
            .map(|post| self.timelines.deliver(*post, recipients.clone()));
        let durable = try_join_all(writes).await?;
        for post in posts {
            let live = TimelineChunk::new(*post, author, Timestamp(0), &recipients);
            self.watchers.notify(live).await;
        }
        try_join_all(durable).await?;
        Ok(())
    }
}
