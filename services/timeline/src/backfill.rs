//! An author's newest posts for new followers.

use std::{sync::Arc, time::Duration};

use futures::future::try_join_all;
use herald_failure::Classify;
use herald_mesh::{Mesh, Settle, consumers, streams};
use herald_model::{PostId, Recipients, UserKey};
use herald_proto::mesh_v1::{Backfill, TimelineChunk};
use herald_runtime::isolate::{self, Isolated};
use herald_store::{Ledger, Posts, Timelines};

use crate::{error::DeliverError, watchers::Watchers};

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
    /// Puts the author's newest posts on the timelines of `recipients`.
    pub(crate) async fn backfill(
        &self,
        request: &Backfill,
        recipients: &Recipients,
    ) -> Result<Settle, DeliverError> {
        // A post accepted just before the follow may not be in the archive yet, and no fan-out brings it.
        let archived = self.mesh.ack_floor(streams::POSTS, consumers::ARCHIVE).await?;
        if archived < request.posts_sequence {
            let reason = format!("the archive is at post {archived} of {}", request.posts_sequence);
            return Ok(Settle::retry_after(ARCHIVE_WAIT, reason));
        }
        // Those of the moment of the follow, however late it is now: newer ones came by fan-out, or were accepted after an
        // unfollow and may not come at all.
        let (author, last) = (UserKey(request.author_key), PostId(request.posts_sequence));
        let posts = self.posts.newest_of(author, last, self.posts_max).await?;
        // An auditor who finds one of these posts on a timeline finds out why it is there.
        self.ledger.note_backfill(&posts, recipients).await?;
        let durable = try_join_all(
            posts
                .iter()
                .map(|post| self.timelines.deliver(*post, recipients.clone())),
        )
        .await?;
        for post in posts {
            self.tell_watchers(post, request, recipients).await;
        }
        try_join_all(durable).await?;
        Ok(Settle::Ack)
    }

    /// As [`backfill`](Self::backfill), part by part, so that those to whom it fails by a fault keep no others from theirs.
    pub(crate) async fn isolate(&self, request: &Backfill, recipients: &Recipients) -> Settle {
        let users: Vec<UserKey> = recipients.iter().collect();
        let Isolated {
            good,
            bad,
            fault,
            stopped,
        } = isolate::isolate(users.len(), |part| {
            let part = Recipients::from_sorted(users[part].iter().copied());
            isolate::sorted(
                async move { self.backfill(request, &part).await },
                Classify::is_transient,
            )
        })
        .await;
        if let Some(error) = stopped {
            return error.into();
        }
        if let Some((_, retry)) = good.into_iter().find(|(_, settle)| *settle != Settle::Ack) {
            return retry;
        }
        match fault {
            Some(fault) => Settle::term(format_args!(
                "{fault} (for {} of {} recipients, isolated)",
                bad.len(),
                users.len()
            )),
            None => Settle::Ack,
        }
    }

    async fn tell_watchers(&self, post: PostId, request: &Backfill, recipients: &Recipients) {
        let live = TimelineChunk {
            post_id: post.0,
            author_key: request.author_key,
            accepted_at_us: 0,
            chunk_id: recipients.chunk_id().0,
            recipients: recipients.as_bytes().clone(),
            recipient_count: recipients.len(),
        };
        self.watchers.tell(live).await;
    }
}
