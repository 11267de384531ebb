//! An author's newest posts for new followers.

use std::{sync::Arc, time::Duration};

use futures::future::try_join_all;
use herald_failure::isolate;
use herald_mesh::{Disposition, Mesh, consumers, streams};
use herald_model::{PostId, Recipients, UserKey, time::Timestamp};
use herald_proto::mesh_v1::{Backfill, TimelineChunk};
use herald_store::{Ledger, Posts, Timelines};

use crate::{adapters::Watchers, domain::isolated_reason, error::DeliverError};

/// How long to wait for the archive before looking again.
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
    /// Puts the author's newest posts on the timelines of `recipients`; with `bisect`, on those of all for whom that does not
    /// fail permanently.
    pub(crate) async fn backfill(
        &self,
        request: &Backfill,
        recipients: &Recipients,
        bisect: bool,
    ) -> Result<(), Disposition> {
        // A post accepted just before the follow may not be in the archive yet, and no fan-out brings it.
        let archived = self.mesh.ack_floor(streams::POSTS, consumers::ARCHIVE).await?;
        if archived < request.posts_sequence {
            let reason = format!("the archive is at post {archived} of {}", request.posts_sequence);
            return Err(Disposition::retry_after(ARCHIVE_WAIT, reason));
        }
        // Those of the moment of the follow, however late it is now: newer ones came by fan-out, or were accepted after an
        // unfollow and may not come at all.
        let (author, last) = (UserKey(request.author_key), PostId(request.posts_sequence));
        let posts = self.posts.newest_of(author, last, self.posts_max).await?;
        let count = recipients.len();
        let put = isolate(count as usize, bisect, |part| {
            self.put(author, &posts, recipients.part(part))
        })
        .await;
        if let Some(failure) = put.stopped {
            return Err(failure.into());
        }
        match put.failed.first() {
            Some((_, reason)) => {
                let failed = put.failed.len() as u32;
                Err(Disposition::term(isolated_reason(reason, failed, count)))
            }
            None => Ok(()),
        }
    }

    async fn put(
        &self,
        author: UserKey,
        posts: &[PostId],
        recipients: Recipients,
    ) -> Result<(), DeliverError> {
        // An auditor who finds one of these posts on a timeline finds out why it is there.
        self.ledger.note_backfill(posts, &recipients).await?;
        let delivering = posts
            .iter()
            .map(|post| self.timelines.deliver(*post, recipients.clone()));
        let durable = try_join_all(delivering).await?;
        for post in posts {
            let live = TimelineChunk::new(*post, author, Timestamp(0), &recipients);
            self.watchers.tell(live).await;
        }
        try_join_all(durable).await?;
        Ok(())
    }
}
