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
pub(crate) enum BackfillError {
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
    ) -> Result<(), BackfillError> {
        // Taken after the follows are durable: a post up to this number may have been accepted before them, one after
        // it pins a version that has them.
        let posts_sequence = self.end_of_posts().await?;
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

    /// The last sequence of POSTS. A server that has just come to lead it can tell an old one while it works off its log, so
    /// what the archive has counts too.
    async fn end_of_posts(&self) -> Result<u64, BackfillError> {
        let told = self.mesh.last_sequence(streams::POSTS).await?;
        let archived = self.posts.last().await?;
        Ok(archived.map_or(told, |post| told.max(post.0)))
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
    use herald_model::{FollowVersion, Post, UserId, time::Timestamp};
    use herald_store::{Archived, embedded};

    use super::*;

    /// No cluster does that on command, so a real server hands the question to the test.
    #[tokio::test]
    async fn posts_end_no_sooner_than_the_archive_whatever_the_broker_tells() {
        let script = "scripted.stream.info";
        let mapping = format!(
            "mappings: {{ \"$JS.API.STREAM.INFO.{}\": {script} }}",
            streams::POSTS
        );
        let server = Server::start(ServerConfig {
            extra: mapping,
            ..ServerConfig::default()
        });
        let server = server.await.unwrap();
        let client = async_nats::connect(server.client_url()).await.unwrap();
        let mut asked = client.subscribe(script).await.unwrap();
        client.flush().await.unwrap();
        tokio::spawn(async move {
            while let Some(question) = asked.next().await {
                let old = r#"{"config":{"num_replicas":1},"state":{"last_seq":4}}"#;
                client.publish(question.reply.unwrap(), old.into()).await.unwrap();
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
            assert_eq!(backfills.end_of_posts().await.unwrap(), end, "{archived:?}");
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
            follow_version: FollowVersion(1),
            accepted_at: Timestamp::now(),
            push_ttl: Duration::from_hours(24),
            deleted_at: None,
        }
    }
}
