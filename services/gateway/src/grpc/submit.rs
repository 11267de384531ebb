//! Accepts posts: checks, pins who the followers are, publishes.

use std::{sync::Arc, time::Instant};

use herald_mesh::{Mesh, Subject};
use herald_model::{FollowVersion, Lane, PostId, UserId, UserKey, time::Timestamp};
use herald_posts::PostReader;
use herald_proto::{mesh_v1, v1};
use herald_rpc::{fields::Violations, status};
use herald_store::{Posts, Users};
use tonic::Status;
use uuid::Uuid;

use crate::{
    Metrics,
    adapters::FollowVersions,
    archive_watermark::{ArchiveWatermark, WatermarkReading},
    domain,
    error::unreadable,
};

/// A post that was checked.
#[derive(Debug)]
pub(crate) struct NewPost {
    author: UserId,
    request_id: Option<String>,
    lane: Lane,
    text: String,
    links: Vec<String>,
    media_urls: Vec<String>,
    push_ttl_seconds: u32,
}

/// Checks a request; the answer names everything that is wrong with it.
pub(crate) fn parse(request: v1::SubmitPostRequest) -> Result<NewPost, Status> {
    let mut violations = Violations::new();
    let request_id = match request.request_id.as_str() {
        "" => None,
        id => violations.take("request_id", domain::request_id(id)),
    };
    let author = violations.user_id("author_id", request.author_id);
    violations.take("text", domain::text(&request.text));
    for (field, urls) in [("links", &request.links), ("media_urls", &request.media_urls)] {
        for (field, description) in domain::urls(field, urls) {
            violations.add(field, description);
        }
    }
    let lane = herald_proto::lane(request.lane);
    violations.check(
        "lane",
        lane.is_some(),
        "must be LANE_HIGH, LANE_NORMAL or LANE_LOW",
    );
    let push_ttl = match request.push_ttl {
        None => Some(domain::PUSH_TTL_DEFAULT),
        Some(ttl) => violations.take("push_ttl", domain::push_ttl(ttl.seconds, ttl.nanos)),
    };
    violations.into_result()?;
    // Without violations there are all of them.
    let (Some(author), Some(lane), Some(push_ttl)) = (author, lane, push_ttl) else {
        return Err(status::invalid(&[("post", "is not valid")]));
    };
    Ok(NewPost {
        author,
        request_id,
        lane,
        text: request.text,
        links: request.links,
        media_urls: request.media_urls,
        push_ttl_seconds: u32::try_from(push_ttl.as_secs()).unwrap_or(u32::MAX),
    })
}

/// A post that was checked, with its author's key and who its followers are.
struct Pinned {
    new: NewPost,
    author: UserKey,
    request_id: String,
    version: FollowVersion,
    /// When the caller chose the request id: how sure it is that there is no such post yet.
    look: Option<WatermarkReading>,
}

/// What is left to do for a post.
enum Step {
    Publish(Box<Pinned>),
    /// It had been accepted before.
    Answer(Accepted, Lane),
}

/// A post on its way: pinned, known already, or refused.
pub(crate) struct Prepared {
    started: Instant,
    outcome: Result<Step, Status>,
}

/// A post that is durable in POSTS.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) id: PostId,
    request_id: String,
    at: Timestamp,
    pub(crate) duplicate: bool,
}

impl From<Accepted> for v1::SubmitPostResponse {
    fn from(accepted: Accepted) -> Self {
        Self {
            post_id: accepted.id.0,
            request_id: accepted.request_id,
            accepted_time: Some(herald_proto::timestamp_to_proto(accepted.at)),
            duplicate: accepted.duplicate,
        }
    }
}

/// Accepts posts.
#[derive(Clone)]
pub(crate) struct Submitter {
    users: Arc<dyn Users>,
    posts: Arc<dyn Posts>,
    mesh: Mesh,
    reader: PostReader,
    archive_watermark: ArchiveWatermark,
    versions: Arc<dyn FollowVersions>,
    metrics: Metrics,
}

impl Submitter {
    pub(crate) fn new(
        users: Arc<dyn Users>,
        posts: Arc<dyn Posts>,
        mesh: Mesh,
        reader: PostReader,
        archive_watermark: ArchiveWatermark,
        versions: Arc<dyn FollowVersions>,
        metrics: Metrics,
    ) -> Self {
        Self {
            users,
            posts,
            mesh,
            reader,
            archive_watermark,
            versions,
            metrics,
        }
    }

    /// Accepts one post.
    pub(crate) async fn submit(&self, request: v1::SubmitPostRequest) -> Result<Accepted, Status> {
        self.publish(self.prepare(request).await).await
    }

    /// Checks a post and pins who its followers are. Nothing is accepted yet.
    pub(crate) async fn prepare(&self, request: v1::SubmitPostRequest) -> Prepared {
        let started = Instant::now();
        let outcome = match parse(request) {
            Ok(post) => self.pin(post).await,
            Err(refused) => Err(refused),
        };
        Prepared { started, outcome }
    }

    /// Publishes a post that is prepared, and counts what became of it.
    pub(crate) async fn publish(&self, prepared: Prepared) -> Result<Accepted, Status> {
        let outcome = match prepared.outcome {
            Ok(Step::Publish(post)) => {
                let lane = post.new.lane;
                self.publish_pinned(*post).await.map(|accepted| (accepted, lane))
            }
            Ok(Step::Answer(accepted, lane)) => Ok((accepted, lane)),
            Err(refused) => Err(refused),
        };
        match outcome {
            Ok((accepted, lane)) => {
                self.metrics
                    .submit_seconds
                    .observe(prepared.started.elapsed().as_secs_f64());
                if accepted.duplicate {
                    self.metrics.posts_duplicate.inc();
                } else {
                    self.metrics.accepted(lane);
                }
                Ok(accepted)
            }
            Err(refused) => {
                self.metrics.refused(refused.code());
                Err(refused)
            }
        }
    }

    async fn pin(&self, new: NewPost) -> Result<Step, Status> {
        self.posts.capacity().await.map_err(|e| status::from_store(&e))?;
        let author = super::intern(&*self.users, new.author.clone()).await?;
        let (request_id, look) = match &new.request_id {
            None => (Uuid::new_v4().as_hyphenated().to_string(), None),
            Some(request_id) if herald_failpoints::sabotaged!("gateway.random-ids") => {
                (request_id.clone(), None)
            }
            Some(request_id) => {
                let look = self.archive_watermark.wait_until_fresh().await?;
                // The broker forgets after its window; the store remembers for a day.
                let first = self.posts.of_request(author, request_id).await;
                if let Some(id) = first.map_err(|e| status::from_store(&e))? {
                    let first = self.accepted_before(id, request_id.clone()).await?;
                    return Ok(Step::Answer(first, new.lane));
                }
                (request_id.clone(), Some(look))
            }
        };
        // Asked after the post arrived, so every follow that was answered before is in it.
        let version = self.versions.current(&new.author).await?;
        Ok(Step::Publish(Box::new(Pinned {
            new,
            author,
            request_id,
            version,
            look,
        })))
    }

    async fn publish_pinned(&self, post: Pinned) -> Result<Accepted, Status> {
        let Pinned {
            new,
            author,
            request_id,
            version,
            look,
        } = post;
        if let Some(look) = look {
            self.archive_watermark.check_fresh(look)?;
        }
        let at = Timestamp::now();
        let message_id = if herald_failpoints::sabotaged!("gateway.random-ids") {
            Uuid::new_v4().to_string()
        } else {
            format!("{author}/{request_id}")
        };
        let created = mesh_v1::PostCreated {
            author_key: author.0,
            author_id: new.author.into_string(),
            request_id,
            text: new.text,
            links: new.links,
            media_urls: new.media_urls,
            lane: v1::Lane::from(new.lane).into(),
            follow_version: version.0,
            accepted_at_us: at.0,
            push_ttl_seconds: new.push_ttl_seconds,
        };
        herald_failpoints::point!("gateway.publish");
        let published = self
            .mesh
            .publish(Subject::PostCreated(new.lane), Some(&message_id), &created)
            .await
            .map_err(|e| status::from_mesh(&e))?;
        herald_failpoints::point!("gateway.accepted");
        let id = PostId(published.sequence);
        if published.duplicate {
            let first = self.accepted_before(id, created.request_id).await?;
            // It can be this very one, when the broker's first answer was lost and the mesh tried again.
            let duplicate = first.at != at;
            return Ok(Accepted { duplicate, ..first });
        }
        Ok(Accepted {
            id,
            request_id: created.request_id,
            at,
            duplicate: false,
        })
    }

    /// The answer to a retry: the first one's.
    async fn accepted_before(&self, id: PostId, request_id: String) -> Result<Accepted, Status> {
        let first = self.reader.read_one(id).await.map_err(|e| unreadable(&e))?;
        // A first one that is too old for archive and stream is still the same post; only its time is lost.
        let at = first.map_or_else(Timestamp::now, |post| post.accepted_at);
        Ok(Accepted {
            id,
            request_id,
            at,
            duplicate: true,
        })
    }
}
