//! Accepts posts: validates them and publishes them. Nothing of graph is needed: fan-out pins the followers later.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use herald_mesh::{Mesh, Subject};
use herald_model::{Lane, Post, PostId, UserId, UserKey, time::Timestamp};
use herald_posts::{NO_KEY, PostReader, ReadError};
use herald_proto::{mesh_v1, v1};
use herald_recovery::StreamWatch;
use herald_rpc::status;
use herald_store::{ErrorKind, Posts, Users};
use tonic::Status;
use uuid::Uuid;

use super::new_post::{self, NewPost};
use crate::{
    Metrics,
    archive_watermark::{ArchiveWatermark, WatermarkReading},
    error::read_error_to_status,
    quota::{PostQuota, Reservation},
    rates::Rates,
    recent_request,
    request_history::{self, HistoryReading, RequestHistory},
};

/// Maximum time to find out whether a post over the quota is a repeated one.
const REPEATED_WAIT_MAX: Duration = Duration::from_secs(2);

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
    /// Its place in the quota of the author.
    reservation: Reservation,
}

/// RESOURCE_EXHAUSTED: the author has posted as often as the quota allows.
fn quota_exceeded(wait: Duration) -> Status {
    status::quota_exceeded(
        "author_id",
        "this author has posted as often in the last 24 hours as gateway.limits.posts_per_day_max allows",
        Some(wait),
    )
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
    pub(crate) author_rates: Rates<UserId>,
    pub(crate) quota: PostQuota,
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
        let outcome = match new_post::parse(request) {
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
                self.metrics.count_refused(&status);
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
                    let original = repetition(id, self.read_original(id).await?, repeated)?;
                    return Ok(NextStep::Duplicate(original, lane));
                }
                (request_id.clone(), evidence)
            }
        };
        // A repeated request is no further post.
        if let Err(wait) = self.author_rates.take(&new.author) {
            self.metrics.count_limited("author");
            return Err(status::rate_limited(
                "author_id",
                "this author posts more often than gateway.limits.posts_per_second_per_author allows",
                wait,
            ));
        }
        let key = author.filter(|_| !self.archive_watermark.is_store_away());
        let reservation = match self.quota.reserve(&new.author, key, &request_id).await {
            Ok(reservation) => reservation,
            Err(wait) => match self.find_repeated(&new.author, key, &request_id, &evidence).await {
                Ok(None) => return Err(quota_exceeded(wait)),
                Ok(Some(id)) => {
                    let lane = new.lane;
                    let repeated = new.into_message(author, request_id, Timestamp::now());
                    let original = repetition(id, self.read_original(id).await?, repeated)?;
                    return Ok(NextStep::Duplicate(original, lane));
                }
                // It could be a repeated request, which must not be refused.
                Err(()) => Reservation::default(),
            },
        };
        Ok(NextStep::Publish(Box::new(ReadyPost {
            new,
            author,
            request_id,
            evidence,
            reservation,
        })))
    }

    /// Finds the post of a request that has no room in the quota of its author, among all that were accepted up to now.
    async fn find_repeated(
        &self,
        author: &UserId,
        key: Option<UserKey>,
        request_id: &str,
        evidence: &Evidence,
    ) -> Result<Option<PostId>, ()> {
        if matches!(evidence, Evidence::Generated) {
            return Ok(None);
        }
        let find = recent_request::find(&self.mesh, &*self.posts, (author, key.ok_or(())?), request_id);
        match tokio::time::timeout(REPEATED_WAIT_MAX, find).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(reason)) => {
                tracing::debug!(reason, %author, "a post over the quota passes: it could be a repeated one");
                Err(())
            }
            Err(_) => Err(()),
        }
    }

    /// The key of an author; `None` if it is not cached and the store is away: then the readers of the post look it up.
    async fn author_key(&self, author: &UserId) -> Result<Option<UserKey>, Status> {
        // The cache of the store is the only one: it forgets authors who are erased.
        if let Some(key) = self.users.cached_key(author) {
            return Ok(Some(key));
        }
        // A store that hangs would take the caller's deadline.
        if self.archive_watermark.is_store_away() {
            return Ok(None);
        }
        match herald_posts::author_key(&*self.users, NO_KEY, author).await {
            Ok(key) => Ok(Some(key)),
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
            reservation,
        } = post;
        match evidence {
            Evidence::Generated => {}
            Evidence::Store(reading) => self.archive_watermark.check_fresh(reading)?,
            Evidence::History(reading) => self.request_history.check_fresh(reading)?,
        }
        // The author can have been erased since the key was read: then the post is one of a new user with this id. An
        // erasure that begins after the check waits for the end of the publish.
        let _key_use = self.users.use_keys();
        let author = match author {
            Some(key) if self.users.cached_key(&new.author) != Some(key) => {
                self.author_key(&new.author).await?
            }
            read => read,
        };
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
        let publish = async |message_id: &str| {
            let published = self
                .mesh
                .publish(Subject::PostCreated(lane), Some(message_id), &created)
                .await;
            published.map_err(|e| status::from_mesh(&e))
        };
        let mut published = publish(&message_id).await?;
        herald_failpoints::point!("gateway.accepted");
        let mut original = None;
        // A generated request id is a duplicate only of itself: the mesh has retried after a lost acknowledgement.
        if published.duplicate && !is_generated {
            original = self.read_original(PostId(published.sequence)).await?;
            if let Some(key) = author
                && original
                    .as_ref()
                    .is_some_and(|original| is_of_another_user(original, key))
            {
                // The request is one of an erased user who had the same id.
                let message_id = format!("post-of/{key}/{}/{}", created.author_id, created.request_id);
                published = publish(&message_id).await?;
                original = if published.duplicate {
                    self.read_original(PostId(published.sequence)).await?
                } else {
                    None
                };
            }
        }
        let id = PostId(published.sequence);
        if published.duplicate && !is_generated {
            let original = repetition(id, original, created)?;
            // After a lost acknowledgement the mesh retries, and the broker reports this same post as a duplicate.
            let duplicate = original.at != at;
            if !duplicate {
                reservation.accept(id, at);
            }
            return Ok(AcceptedPost {
                duplicate,
                ..original
            });
        }
        reservation.accept(id, at);
        Ok(AcceptedPost {
            id,
            request_id: created.request_id,
            at,
            duplicate: false,
        })
    }

    /// Reads the post that a request names; `None` if it has left archive and stream.
    async fn read_original(&self, id: PostId) -> Result<Option<Post>, Status> {
        let original = match self.reader.read_one(id).await {
            // POSTS has it too.
            Err(ReadError::Store(_)) => self.reader.read_accepted(id).await,
            read => read,
        };
        original.map_err(|e| read_error_to_status(&e))
    }
}

/// Whether a post has the key of another user than this one. A post without a key can be of either.
fn is_of_another_user(post: &Post, key: UserKey) -> bool {
    post.author != NO_KEY && post.author != key
}

/// Builds the response to a repeated request from the original post; ALREADY_EXISTS if that is another post.
fn repetition(
    id: PostId,
    original: Option<Post>,
    repeated: mesh_v1::PostCreated,
) -> Result<AcceptedPost, Status> {
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
