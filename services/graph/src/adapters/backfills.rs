//! Publishes backfills: requests to deliver an author's newest posts to new followers' timelines.

use std::{collections::BTreeMap, sync::Arc};

use futures::{StreamExt, TryStreamExt, stream};
use herald_mesh::{Mesh, Subject, consumers, streams};
use herald_model::{Lane, PostId, Recipients, UserKey};
use herald_proto::mesh_v1::Backfill;
use herald_store::Posts;

/// Backfills use the low lane, so that they don't delay posts.
const LANE: Lane = Lane::Low;

/// Maximum number of backfill messages in flight of one call.
const PUBLISHES_IN_FLIGHT_MAX: usize = 64;

/// Why a backfill could not be published.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackfillError {
    #[error("the backfill could not be published")]
    Mesh(#[from] herald_mesh::Error),
    #[error("the posts of the author could not be read")]
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

    /// Publishes the backfills of new follows, given as (author, follower). They are durable in TIMELINE on return. A
    /// repeated backfill delivers nothing twice, because a timeline contains a post once.
    pub(crate) async fn request(
        &self,
        follows: impl IntoIterator<Item = (UserKey, UserKey)>,
    ) -> Result<(), BackfillError> {
        // Read after the follows are durable: a post with a greater sequence is stored later, and the follow version that
        // its fan-out pins includes them. A post up to this sequence may be fanned out already, without them.
        let posts_sequence = self.last_post_sequence().await?;
        if posts_sequence == 0 {
            return Ok(());
        }
        let mut by_author = BTreeMap::<UserKey, Vec<UserKey>>::new();
        for (author, follower) in follows {
            by_author.entry(author).or_default().push(follower);
        }
        // Once all posts up to this sequence are archived, an author without archived posts needs no backfill.
        let archived = self.mesh.ack_floor(streams::POSTS, consumers::ARCHIVE).await? >= posts_sequence;
        stream::iter(by_author)
            .map(|(author, mut followers)| async move {
                if archived
                    && self
                        .posts
                        .newest_by_author(author, PostId(posts_sequence), 1)
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

    /// The last sequence of POSTS. A newly elected leader that is still applying its log can report a stale sequence,
    /// so the last archived post is a lower bound.
    async fn last_post_sequence(&self) -> Result<u64, BackfillError> {
        let stream_last = self.mesh.last_sequence(streams::POSTS).await?;
        let archived = self.posts.last().await?;
        Ok(archived.map_or(stream_last, |post| stream_last.max(post.0)))
    }

    async fn publish(
        &self,
        author: UserKey,
        followers: &Recipients,
        posts_sequence: u64,
    ) -> Result<(), BackfillError> {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use herald_local_nats::{Config as ServerConfig, Server};
    use herald_mesh::Config;
    use herald_model::{Post, PushContent, UserId, time::Timestamp};
    use herald_store::{Archived, embedded};

    use super::*;

    /// A test can't make a cluster report a stale sequence, so a subject mapping routes the request to the test.
    #[tokio::test]
    async fn the_end_of_posts_is_at_least_the_last_archived_post() {
        let mapped_subject = "scripted.stream.info";
        let mapping = format!(
            "mappings: {{ \"$JS.API.STREAM.INFO.{}\": {mapped_subject} }}",
            streams::POSTS
        );
        let server = Server::start(ServerConfig {
            extra: mapping,
            ..ServerConfig::default()
        });
        let server = server.await.unwrap();
        let client = async_nats::connect(server.client_url()).await.unwrap();
        let mut requests = client.subscribe(mapped_subject).await.unwrap();
        client.flush().await.unwrap();
        tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                let stale = r#"{"config":{"num_replicas":1},"state":{"first_seq":1,"last_seq":4,"last_ts":"2026-01-02T03:04:05Z"}}"#;
                client
                    .publish(request.reply.unwrap(), stale.into())
                    .await
                    .unwrap();
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let store = embedded::Embedded::open(&embedded::Config {
            data_dir: dir.path().into(),
            ..embedded::Config::default()
        });
        let store = store.unwrap();
        let mesh = Mesh::connect(&Config::at(server.client_url())).await.unwrap();
        let backfills = Backfills::new(mesh, store.stores().posts);
        for (archived, end) in [(None, 4), (Some(3), 4), (Some(9), 9)] {
            if let Some(id) = archived {
                let archived = [Archived::Created(post(id))];
                backfills.posts.archive(&archived).await.unwrap();
            }
            assert_eq!(backfills.last_post_sequence().await.unwrap(), end, "{archived:?}");
        }
    }

    fn post(id: u64) -> Post {
        Post {
            id: PostId(id),
            author: UserKey(1),
            author_id: UserId::new("author").unwrap(),
            request_id: format!("request {id}"),
            text: "text".into(),
            links: Vec::new(),
            media_urls: Vec::new(),
            lane: Lane::Normal,
            accepted_at: Timestamp::now(),
            push_ttl: Duration::from_hours(24),
            push: PushContent::default(),
            deleted_at: None,
        }
    }
}
