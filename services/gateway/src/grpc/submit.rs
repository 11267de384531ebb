//! Accepts posts: validates them and publishes them. Nothing of graph is needed: fan-out pins the followers later.

use std::{sync::Arc, time::Instant};

use herald_mesh::{Mesh, Subject};
use herald_model::{Lane, Post, PostId, PushContent, UserId, UserKey, time::Timestamp};
use herald_posts::{NO_KEY, PostReader, ReadError};
use herald_proto::{mesh_v1, v1};
use herald_recovery::StreamWatch;
use herald_rpc::{fields::Violations, status};
use herald_store::{ErrorKind, Posts, Users};
use moka::sync::Cache;
use tonic::Status;
use uuid::Uuid;

use crate::{
    Metrics,
    archive_watermark::{ArchiveWatermark, WatermarkReading},
    domain,
    error::read_error_to_status,
    request_history::{self, HistoryReading, RequestHistory},
};

/// Maximum number of authors whose keys are cached, some 10 MB.
const AUTHORS_MAX: u64 = 100_000;

/// A validated post.
#[derive(Debug)]
pub(crate) struct NewPost {
    author: UserId,
    request_id: Option<String>,
    lane: Lane,
    text: String,
    links: Vec<String>,
    media_urls: Vec<String>,
    push_ttl_seconds: u32,
    push: PushContent,
}

/// Validates a request; the error names every invalid field.
pub(crate) fn parse(request: v1::SubmitPostRequest) -> Result<NewPost, Status> {
    let mut violations = Violations::new();
    let request_id = match request.request_id.as_str() {
        "" => None,
        id => violations.take("request_id", domain::parse_request_id(id)),
    };
    let author = violations.user_id("author_id", request.author_id);
    violations.take("text", domain::check_text(&request.text));
    for (field, urls) in [("links", &request.links), ("media_urls", &request.media_urls)] {
        for (field, description) in domain::check_urls(field, urls) {
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
        Some(ttl) => violations.take("push_ttl", herald_model::parse_push_ttl(ttl.seconds, ttl.nanos)),
    };
    violations.take("push_title", domain::check_push_title(&request.push_title));
    violations.take(
        "push_collapse_key",
        domain::check_collapse_key(&request.push_collapse_key),
    );
    violations.take("push_data", domain::check_push_data(&request.push_data));
    violations.into_result()?;
    // Without violations all three are `Some`.
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
        push: PushContent {
            title: request.push_title,
            collapse_key: request.push_collapse_key,
            data: request.push_data,
        },
    })
}

impl NewPost {
    /// The message that the post is published as.
    fn into_message(
        self,
        author: Option<UserKey>,
        request_id: String,
        at: Timestamp,
    ) -> mesh_v1::PostCreated {
        mesh_v1::PostCreated {
            author_key: author.unwrap_or(NO_KEY).0,
            author_id: self.author.into_string(),
            request_id,
            text: self.text,
            links: self.links,
            media_urls: self.media_urls,
            lane: v1::Lane::from(self.lane).into(),
            accepted_at_us: at.0,
            push_ttl_seconds: self.push_ttl_seconds,
            push_title: self.push.title,
            push_collapse_key: self.push.collapse_key,
            push_data: self.push.data,
        }
    }
}

/// The fields of SubmitPostRequest in which a post differs from an earlier one.
fn changed_fields(post: &mesh_v1::PostCreated, original: &Post) -> Vec<&'static str> {
    let unchanged = [
        ("text", post.text == original.text),
        ("links", post.links == original.links),
        ("media_urls", post.media_urls == original.media_urls),
        ("lane", post.lane() == v1::Lane::from(original.lane)),
        (
            "push_ttl",
            u64::from(post.push_ttl_seconds) == original.push_ttl.as_secs(),
        ),
        ("push_title", post.push_title == original.push.title),
        (
            "push_collapse_key",
            post.push_collapse_key == original.push.collapse_key,
        ),
        ("push_data", post.push_data == original.push.data),
    ];
    let changed = unchanged.into_iter().filter(|(_, unchanged)| !unchanged);
    changed.map(|(field, _)| field).collect()
}

/// A validated post, ready to be published.
struct ReadyPost {
    new: NewPost,
    /// The key of the author; `None`: the readers of the post look it up.
    author: Option<UserKey>,
    request_id: String,
    /// What shows that there is no post with this request id.
    evidence: Evidence,
}

/// What shows that no post has a request id.
enum Evidence {
    /// The gateway has generated it.
    Generated,
    /// The store had none under this reading.
    Store(WatermarkReading),
    /// POSTS had none under this reading.
    History(HistoryReading),
}

/// The remaining step of a prepared post.
enum NextStep {
    Publish(Box<ReadyPost>),
    /// The request id was accepted before.
    Duplicate(AcceptedPost, Lane),
}

/// A prepared post: ready to publish, a duplicate, or refused.
pub(crate) struct PreparedPost {
    started: Instant,
    outcome: Result<NextStep, Status>,
}

/// A post that is durable in POSTS.
#[derive(Debug)]
pub(crate) struct AcceptedPost {
    pub(crate) id: PostId,
    request_id: String,
    at: Timestamp,
    pub(crate) duplicate: bool,
}

impl From<AcceptedPost> for v1::SubmitPostResponse {
    fn from(accepted: AcceptedPost) -> Self {
        Self {
            post_id: accepted.id.0,
            request_id: accepted.request_id,
            accepted_time: Some(herald_proto::timestamp_to_proto(accepted.at)),
            duplicate: accepted.duplicate,
        }
    }
}

/// The keys of authors that the gateway knows. A key never changes. Clones share them.
#[derive(Clone)]
pub(crate) struct Authors(Cache<UserId, UserKey>);

impl Default for Authors {
    fn default() -> Self {
        Self(Cache::new(AUTHORS_MAX))
    }
}

/// Accepts posts. Clones share the connections.
#[derive(Clone)]
pub(crate) struct Submitter {
    pub(crate) users: Arc<dyn Users>,
    pub(crate) posts: Arc<dyn Posts>,
    pub(crate) mesh: Mesh,
    pub(crate) reader: PostReader,
    pub(crate) archive_watermark: ArchiveWatermark,
    pub(crate) request_history: RequestHistory,
    pub(crate) stream_watch: StreamWatch,
    pub(crate) authors: Authors,
    pub(crate) metrics: Metrics,
}

impl Submitter {
    /// Accepts one post.
    pub(crate) async fn submit(&self, request: v1::SubmitPostRequest) -> Result<AcceptedPost, Status> {
        self.publish(self.prepare(request).await).await
    }

    /// Validates a post and looks for an earlier one with its request id. Nothing is durable yet.
    pub(crate) async fn prepare(&self, request: v1::SubmitPostRequest) -> PreparedPost {
        let started = Instant::now();
        let outcome = match parse(request) {
            Ok(post) => self.choose_next_step(post).await,
            Err(status) => Err(status),
        };
        PreparedPost { started, outcome }
    }

    /// Publishes a prepared post, and updates the metrics.
    pub(crate) async fn publish(&self, prepared: PreparedPost) -> Result<AcceptedPost, Status> {
        let outcome = match prepared.outcome {
            Ok(NextStep::Publish(post)) => {
                let lane = post.new.lane;
                self.publish_ready(*post).await.map(|accepted| (accepted, lane))
            }
            Ok(NextStep::Duplicate(accepted, lane)) => Ok((accepted, lane)),
            Err(status) => Err(status),
        };
        match outcome {
            Ok((accepted, lane)) => {
                self.metrics
                    .submit_seconds
                    .observe(prepared.started.elapsed().as_secs_f64());
                if accepted.duplicate {
                    self.metrics.posts_duplicate.inc();
                } else {
                    self.metrics.count_accepted(lane);
                }
                Ok(accepted)
            }
            Err(status) => {
                self.metrics.count_refused(status.code());
                Err(status)
            }
        }
    }

    async fn choose_next_step(&self, new: NewPost) -> Result<NextStep, Status> {
        self.stream_watch
            .accepts_posts()
            .map_err(|reason| status::unavailable("STREAMS_DAMAGED", reason))?;
        match self.posts.capacity().await {
            Err(error) if error.kind() != ErrorKind::Unavailable => return Err(status::from_store(&error)),
            // A store that can't be reached takes the post later.
            Ok(()) | Err(_) => {}
        }
        let author = self.author_key(&new.author).await?;
        let (request_id, evidence) = match &new.request_id {
            None => (Uuid::new_v4().as_hyphenated().to_string(), Evidence::Generated),
            Some(request_id) if herald_failpoints::negative_control!("gateway.random-ids") => {
                (request_id.clone(), Evidence::Generated)
            }
            Some(request_id) => {
                let (original, evidence) = self.find_original(&new.author, author, request_id).await?;
                if let Some(id) = original {
                    let (lane, request_id) = (new.lane, request_id.clone());
                    let repeated = new.into_message(author, request_id, Timestamp::now());
                    let original = self.read_original(id, repeated).await?;
                    return Ok(NextStep::Duplicate(original, lane));
                }
                (request_id.clone(), evidence)
            }
        };
        Ok(NextStep::Publish(Box::new(ReadyPost {
            new,
            author,
            request_id,
            evidence,
        })))
    }

    /// The key of an author; `None` if it is not cached and the store is away: then the readers of the post look it up.
    async fn author_key(&self, author: &UserId) -> Result<Option<UserKey>, Status> {
        if let Some(key) = self.authors.0.get(author) {
            return Ok(Some(key));
        }
        // A store that hangs would take the caller's deadline.
        if self.archive_watermark.is_store_away() {
            return Ok(None);
        }
        match herald_posts::author_key(&*self.users, NO_KEY, author).await {
            Ok(key) => {
                self.authors.0.insert(author.clone(), key);
                Ok(Some(key))
            }
            Err(error) if error.is_away() => {
                self.archive_watermark.note_store_away();
                Ok(None)
            }
            Err(error) => Err(status::from_store(&error)),
        }
    }

    /// Finds the post of a request. The broker detects duplicates within its dedupe window, the store for 24 hours; while
    /// the store is away, the history of POSTS does.
    async fn find_original(
        &self,
        author_id: &UserId,
        author: Option<UserKey>,
        request_id: &str,
    ) -> Result<(Option<PostId>, Evidence), Status> {
        // A store that hangs would take the caller's deadline.
        let use_history = self.archive_watermark.is_store_away() && self.request_history.is_fresh();
        // The store knows requests by the author's key.
        let away = if let Some(author) = author.filter(|_| !use_history) {
            match self.archive_watermark.wait_until_fresh().await {
                Ok(reading) => match self.posts.find_by_request(author, request_id).await {
                    Ok(original) => return Ok((original, Evidence::Store(reading))),
                    Err(error) if error.is_away() => {
                        self.archive_watermark.note_store_away();
                        status::from_store(&error)
                    }
                    Err(error) => return Err(status::from_store(&error)),
                },
                Err(behind) if self.archive_watermark.is_store_away() => behind,
                Err(behind) => return Err(behind),
            }
        } else {
            request_history::store_away()
        };
        let (original, reading) = self
            .request_history
            .find(author_id, request_id)
            .await
            .map_err(|_| away.clone())?;
        let Some(id) = original else {
            return Ok((None, Evidence::History(reading)));
        };
        // Two requests can have the same hash.
        let post = self.reader.read_accepted(id).await;
        let post = post.map_err(|e| read_error_to_status(&e))?;
        let is_original = |post: &Post| post.author_id == *author_id && post.request_id == request_id;
        if post.as_ref().is_some_and(is_original) {
            Ok((Some(id), Evidence::History(reading)))
        } else {
            Err(away)
        }
    }

    async fn publish_ready(&self, post: ReadyPost) -> Result<AcceptedPost, Status> {
        let ReadyPost {
            new,
            author,
            request_id,
            evidence,
        } = post;
        match evidence {
            Evidence::Generated => {}
            Evidence::Store(reading) => self.archive_watermark.check_fresh(reading)?,
            Evidence::History(reading) => self.request_history.check_fresh(reading)?,
        }
        let is_generated = matches!(evidence, Evidence::Generated);
        let at = Timestamp::now();
        let message_id = if herald_failpoints::negative_control!("gateway.random-ids") {
            Uuid::new_v4().to_string()
        } else {
            // Gateways that know the author's key, and those that don't, must name a request in the same way. The
            // server skips blanks at the begin of a header, where those of the author's id must not be.
            format!("post/{}/{request_id}", new.author.as_str())
        };
        let lane = new.lane;
        let created = new.into_message(author, request_id, at);
        herald_failpoints::point!("gateway.publish");
        let published = self
            .mesh
            .publish(Subject::PostCreated(lane), Some(&message_id), &created)
            .await
            .map_err(|e| status::from_mesh(&e))?;
        herald_failpoints::point!("gateway.accepted");
        let id = PostId(published.sequence);
        // A generated request id is a duplicate only of itself: the mesh has retried after a lost acknowledgement.
        if published.duplicate && !is_generated {
            let original = self.read_original(id, created).await?;
            // After a lost acknowledgement the mesh retries, and the broker reports this same post as a duplicate.
            let duplicate = original.at != at;
            return Ok(AcceptedPost {
                duplicate,
                ..original
            });
        }
        Ok(AcceptedPost {
            id,
            request_id: created.request_id,
            at,
            duplicate: false,
        })
    }

    /// Builds the response to a repeated request from the original post; ALREADY_EXISTS if that is another post.
    async fn read_original(
        &self,
        id: PostId,
        repeated: mesh_v1::PostCreated,
    ) -> Result<AcceptedPost, Status> {
        let original = match self.reader.read_one(id).await {
            // POSTS has it too.
            Err(ReadError::Store(_)) => self.reader.read_accepted(id).await,
            read => read,
        };
        let original = original.map_err(|e| read_error_to_status(&e))?;
        let changed = original
            .as_ref()
            .map(|original| changed_fields(&repeated, original));
        if let Some(changed) = changed.filter(|changed| !changed.is_empty()) {
            let message = format!(
                "request_id {} belongs to post {id}, which has other values of {}; use a new request_id for a new post",
                repeated.request_id,
                changed.join(", ")
            );
            return Err(status::already_exists("REQUEST_ID_REUSED", message));
        }
        // The original may have left archive and stream; then its time of acceptance is unknown.
        let at = original.map_or_else(Timestamp::now, |post| post.accepted_at);
        Ok(AcceptedPost {
            id,
            request_id: repeated.request_id,
            at,
            duplicate: true,
        })
    }
}
