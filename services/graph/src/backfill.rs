//! Asks for an author's newest posts on the timelines of new followers.

use std::{collections::BTreeMap, sync::Arc};

use futures::{StreamExt, TryStreamExt, stream};
use herald_mesh::{Mesh, Subject, consumers, streams};
use herald_model::{Lane, PostId, Recipients, UserKey};
use herald_proto::mesh_v1::Backfill;
use herald_store::Posts;

/// Backfills are for people who look at their timeline now, but never before a post somebody waits for.
const LANE: Lane = Lane::Low;

/// Messages on their way to the broker for one call.
const PUBLISHES_IN_FLIGHT_MAX: usize = 64;

/// Why a backfill could not be asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the mesh did not take a backfill")]
    Mesh(#[from] herald_mesh::Error),
    #[error("the author's posts can't be read")]
    Store(#[from] herald_store::Error),
}

/// Publishes backfill messages.
#[derive(Clone)]
pub(crate) struct Backfills {
    mesh: Mesh,
    posts: Arc<dyn Posts>,
}

impl Backfills {
    pub(crate) fn new(mesh: Mesh, posts: Arc<dyn Posts>) -> Self {
        Self { mesh, posts }
    }

    /// Asks for the backfill of some new follows, given as (author, follower). Durable in TIMELINE on return; asking
    /// twice delivers once, because a timeline holds a post once.
    pub(crate) async fn request(
        &self,
        follows: impl IntoIterator<Item = (UserKey, UserKey)>,
    ) -> Result<(), Error> {
        // Taken after the follows are durable: a post up to this number may have been accepted before them, one after
        // it pins a version that has them.
        let posts_sequence = self.mesh.last_sequence(streams::POSTS).await?;
        if posts_sequence == 0 {
            return Ok(());
        }
        let mut by_author = BTreeMap::<UserKey, Vec<UserKey>>::new();
        for (author, follower) in follows {
            by_author.entry(author).or_default().push(follower);
        }
        // Once all of these posts are archived, an author without posts in the archive has none.
        let archived = self.mesh.ack_floor(streams::POSTS, consumers::ARCHIVE).await? >= posts_sequence;
        stream::iter(by_author)
            .map(|(author, mut followers)| async move {
                if archived
                    && self
                        .posts
                        .newest_of(author, PostId(posts_sequence), 1)
                        .await?
                        .is_empty()
                {
                    return Ok(());
                }
                followers.sort_unstable();
                self.publish(author, &Recipients::from_sorted(followers), posts_sequence)
                    .await
            })
            .buffer_unordered(PUBLISHES_IN_FLIGHT_MAX)
            .try_collect()
            .await
    }

    async fn publish(
        &self,
        author: UserKey,
        followers: &Recipients,
        posts_sequence: u64,
    ) -> Result<(), Error> {
        let body = Backfill {
            author_key: author.0,
            recipients: followers.as_bytes().clone(),
            recipient_count: followers.len(),
            posts_sequence,
        };
        let id = format!("{author}/backfill/{posts_sequence}/{}", followers.chunk_id());
        self.mesh
            .publish(Subject::TimelineBackfill(LANE), Some(&id), &body)
            .await?;
        Ok(())
    }
}
