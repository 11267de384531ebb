//! PostService.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _};
use herald_mesh::{Mesh, Subject};
use herald_model::{Post, PostId, time::Timestamp};
use herald_posts::PostReader;
use herald_proto::{
    mesh_v1,
    v1::{self, post_service_server::PostService},
};
use herald_rpc::{
    fields,
    fields::Violations,
    paging::{self, PageToken},
    status,
};
use herald_runtime::trace;
use herald_store::{Archived, Posts, Users};
use prost::Message as _;
use tokio::{
    task::unconstrained,
    time::{Instant, sleep_until},
};
use tonic::{Request, Response, Status, Streaming};

use super::submit::Submitter;
use crate::{
    archive_watermark::ArchiveWatermark,
    error::read_error_to_status,
    feed::{self, RESPONSE_BYTES_MAX},
};

/// Maximum number of posts of one SubmitPosts stream.
const POSTS_PER_STREAM_MAX: usize = 1_000_000;
/// Maximum number of failures that a SubmitPosts response lists.
const FAILURES_MAX: usize = 1_000;
/// Pauses between two reads of the archive while DeletePost waits: the first pause doubles up to the last one.
const DELETED_POLL_FIRST: Duration = Duration::from_millis(2);
const DELETED_POLL_LAST: Duration = Duration::from_millis(100);

const LIST_POSTS: &str = "ListPosts";
const PAGE_SIZE_DEFAULT: usize = 50;
const PAGE_SIZE_MAX: usize = 200;
/// Maximum number of posts of one BatchGetPosts call.
const BATCH_POSTS_MAX: usize = 100;

/// Implements PostService.
pub(crate) struct PostApi {
    pub(crate) users: Arc<dyn Users>,
    pub(crate) posts: Arc<dyn Posts>,
    pub(crate) submitter: Submitter,
    pub(crate) reader: PostReader,
    pub(crate) archive_watermark: ArchiveWatermark,
    pub(crate) mesh: Mesh,
    pub(crate) in_flight_max: usize,
    pub(crate) delete_wait: Duration,
}

impl PostApi {
    /// Publishes the deletion of a post, and waits until it is archived.
    async fn delete(&self, post: &Post) -> Result<(), Status> {
        // After its dedupe window the broker doesn't detect a repeated deletion; with a fresh watermark the store does.
        let reading = self.archive_watermark.wait_until_fresh().await?;
        if self
            .reader
            .is_deleted(post.id)
            .await
            .map_err(|e| read_error_to_status(&e))?
        {
            return Ok(());
        }
        if herald_failpoints::negative_control!("gateway.drop-deletion") {
            return Ok(());
        }
        let deleted = mesh_v1::PostDeleted {
            post_id: post.id.0,
            author_key: post.author.0,
            deleted_at_us: Timestamp::now().0,
        };
        self.archive_watermark.check_fresh(reading)?;
        self.mesh
            .publish(
                Subject::PostDeleted(post.lane),
                Some(&format!("{}/deleted", post.id)),
                &deleted,
            )
            .await
            .map_err(|e| status::from_mesh(&e))?;
        // No gateway shows the post once the call is answered, even if the archive consumer lags.
        if !self.is_archived(post.id).await? {
            let deletion = Archived::Deleted {
                post: post.id,
                at: Timestamp(deleted.deleted_at_us),
            };
            let entries = [Archived::Created(post.clone()), deletion];
            let archived = self.posts.archive(&entries).await;
            archived.map_err(|e| status::from_store(&e))?;
        }
        // Watches that miss it find the deletion when they compare with the store.
        let live = mesh_v1::LiveUpdates {
            deleted_post_ids: vec![post.id.0],
            ..Default::default()
        };
        if let Err(error) = self.mesh.publish_live(live.encode_to_vec().into()).await {
            tracing::debug!(%error, post_id = post.id.0, "deletion not published to watchers");
        }
        Ok(())
    }

    /// Waits until the archive has a deletion, at most `delete_wait`.
    async fn is_archived(&self, id: PostId) -> Result<bool, Status> {
        let until = Instant::now() + self.delete_wait;
        let mut pause = DELETED_POLL_FIRST;
        while !self
            .reader
            .is_deleted(id)
            .await
            .map_err(|e| read_error_to_status(&e))?
        {
            let next = Instant::now() + pause;
            if next > until {
                return Ok(false);
            }
            sleep_until(next).await;
            pause = (pause * 2).min(DELETED_POLL_LAST);
        }
        Ok(true)
    }
}

#[tonic::async_trait]
impl PostService for PostApi {
    async fn submit_post(
        &self,
        request: Request<v1::SubmitPostRequest>,
    ) -> Result<Response<v1::SubmitPostResponse>, Status> {
        let accepted = self.submitter.submit(request.into_inner()).await?;
        trace::record_post(accepted.id.0);
        Ok(Response::new(accepted.into()))
    }

    async fn submit_posts(
        &self,
        request: Request<Streaming<v1::SubmitPostsRequest>>,
    ) -> Result<Response<v1::SubmitPostsResponse>, Status> {
        let mut requests = request.into_inner();
        let mut response = v1::SubmitPostsResponse::default();
        {
            let submitter = &self.submitter;
            // Posts are prepared concurrently and published concurrently, in the order sent, so the ids of an author's
            // posts ascend unless a publish is retried. The next request is read when a post leaves the buffer.
            let mut outcomes = requests
                .by_ref()
                .take(POSTS_PER_STREAM_MAX)
                .map_ok(|request| async move {
                    match request.post {
                        Some(post) => Ok(Ok(submitter.prepare(post).await)),
                        None => Ok(Err(status::invalid(&[("post", "must be given")]))),
                    }
                })
                .try_buffered(self.in_flight_max)
                .map_ok(|prepared| async move {
                    match prepared {
                        // Tokio's cooperative scheduling would suspend some publishes and change their order.
                        Ok(prepared) => Ok(unconstrained(submitter.publish(prepared)).await),
                        Err(status) => Ok(Err(status)),
                    }
                })
                .try_buffered(self.in_flight_max);
            while let Some(outcome) = outcomes.try_next().await? {
                match outcome {
                    Ok(accepted) => {
                        response.accepted_count += 1;
                        response.duplicate_count += u64::from(accepted.duplicate);
                        response.post_ids.push(accepted.id.0);
                    }
                    Err(status) => add_failure(&mut response, &status),
                }
            }
        }
        // An error would hide the accepted posts, so the first post that was not read is reported as a failure.
        if response.post_ids.len() == POSTS_PER_STREAM_MAX && requests.message().await?.is_some() {
            let message = format!(
                "at most {POSTS_PER_STREAM_MAX} posts per stream: this post and the rest were not read"
            );
            let index = response.post_ids.len() as u64;
            response.failures.truncate(FAILURES_MAX - 1);
            response.failures.push(v1::SubmitFailure {
                index,
                status: Some(status::to_proto(&status::out_of_range("TOO_MANY_POSTS", message))),
            });
        }
        Ok(Response::new(response))
    }

    async fn get_post(
        &self,
        request: Request<v1::GetPostRequest>,
    ) -> Result<Response<v1::GetPostResponse>, Status> {
        let id = parse_post_id(request.into_inner().post_id)?;
        match self
            .reader
            .read_one(id)
            .await
            .map_err(|e| read_error_to_status(&e))?
        {
            Some(post) if post.deleted_at.is_none() => Ok(Response::new(v1::GetPostResponse {
                post: Some(post.into()),
            })),
            _ => Err(post_not_found(id)),
        }
    }

    async fn batch_get_posts(
        &self,
        request: Request<v1::BatchGetPostsRequest>,
    ) -> Result<Response<v1::BatchGetPostsResponse>, Status> {
        let ids = parse_post_ids(&request.into_inner().post_ids)?;
        let posts = self
            .reader
            .read(&ids)
            .await
            .map_err(|e| read_error_to_status(&e))?;
        let mut response = v1::BatchGetPostsResponse::default();
        let mut bytes = 0;
        for (id, post) in ids.iter().zip(posts) {
            let Some(post) = post.filter(|post| post.deleted_at.is_none()) else {
                response.missing_post_ids.push(id.0);
                continue;
            };
            bytes += feed::estimated_bytes(&post);
            if bytes > RESPONSE_BYTES_MAX {
                response.remaining_post_ids.push(id.0);
            } else {
                response.posts.push(post.into());
            }
        }
        Ok(Response::new(response))
    }

    async fn list_posts(
        &self,
        request: Request<v1::ListPostsRequest>,
    ) -> Result<Response<v1::ListPostsResponse>, Status> {
        let request = request.into_inner();
        let author_id = fields::user_id("author_id", request.author_id)?;
        let size = paging::page_size(request.page_size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)?;
        let identity = paging::identity([author_id.as_str().as_bytes()]);
        let before = PageToken::decode_u64(LIST_POSTS, identity, &request.page_token)?;
        let Some(author) = super::find_user(&*self.users, author_id).await? else {
            return Ok(Response::new(v1::ListPostsResponse::default()));
        };
        let up_to = PostId(before.map_or(u64::MAX, |before| before.saturating_sub(1)));
        // One extra id shows whether there is a next page.
        let ids = self.posts.newest_by_author(author, up_to, size + 1).await;
        let mut ids = ids.map_err(|e| status::from_store(&e))?;
        let mut more = ids.len() > size;
        ids.truncate(size);
        let posts = self
            .reader
            .read(&ids)
            .await
            .map_err(|e| read_error_to_status(&e))?;
        let mut response = v1::ListPostsResponse::default();
        let mut bytes = 0;
        let mut last = None;
        for (id, post) in ids.into_iter().zip(posts) {
            // A post can be deleted between the two reads.
            let post = post.filter(|post| post.deleted_at.is_none());
            bytes += post.as_ref().map_or(0, feed::estimated_bytes);
            if bytes > RESPONSE_BYTES_MAX {
                more = true;
                break;
            }
            last = Some(id);
            response.posts.extend(post.map(v1::Post::from));
        }
        if let Some(last) = last.filter(|_| more) {
            response.next_page_token = PageToken::encode_u64(LIST_POSTS, identity, last.0);
        }
        Ok(Response::new(response))
    }

    async fn delete_post(
        &self,
        request: Request<v1::DeletePostRequest>,
    ) -> Result<Response<v1::DeletePostResponse>, Status> {
        let request = request.into_inner();
        let id = parse_post_id(request.post_id)?;
        trace::record_post(id.0);
        // `None`: any author.
        let author = match (request.any_author, request.author_id) {
            (true, author) if author.is_empty() => None,
            (true, _) => {
                let description = "must be empty when any_author is true";
                return Err(status::invalid(&[("author_id", description)]));
            }
            (false, author) if author.is_empty() => {
                let description = "must be given unless any_author is true";
                return Err(status::invalid(&[("author_id", description)]));
            }
            (false, author) => Some(fields::user_id("author_id", author)?),
        };
        let post = self
            .reader
            .read_one(id)
            .await
            .map_err(|e| read_error_to_status(&e))?
            .ok_or_else(|| post_not_found(id))?;
        if author.is_some_and(|author| author != post.author_id) {
            return Err(status::permission_denied(
                "NOT_THE_AUTHOR",
                format!("post {id} belongs to another author"),
            ));
        }
        if post.deleted_at.is_none() {
            self.delete(&post).await?;
        }
        Ok(Response::new(v1::DeletePostResponse {}))
    }
}

/// Checks a post id: not 0.
pub(super) fn parse_post_id(id: u64) -> Result<PostId, Status> {
    if id == 0 {
        Err(status::invalid(&[("post_id", "must not be 0")]))
    } else {
        Ok(PostId(id))
    }
}

/// Checks the ids of a batch: 1 to [`BATCH_POSTS_MAX`], none of them 0.
fn parse_post_ids(ids: &[u64]) -> Result<Vec<PostId>, Status> {
    let mut violations = Violations::new();
    violations.check(
        "post_ids",
        (1..=BATCH_POSTS_MAX).contains(&ids.len()),
        format!("must contain 1 to {BATCH_POSTS_MAX} ids, contains {}", ids.len()),
    );
    for (index, id) in ids.iter().enumerate() {
        violations.check(format!("post_ids[{index}]"), *id != 0, "must not be 0");
    }
    violations.into_result()?;
    Ok(ids.iter().copied().map(PostId).collect())
}

/// NOT_FOUND for an unknown or deleted post.
pub(super) fn post_not_found(id: PostId) -> Status {
    status::not_found("POST_NOT_FOUND", format!("there is no post {id}"))
}

fn add_failure(response: &mut v1::SubmitPostsResponse, status: &Status) {
    if response.failures.len() < FAILURES_MAX {
        response.failures.push(v1::SubmitFailure {
            index: response.post_ids.len() as u64,
            status: Some(status::to_proto(status)),
        });
    }
    response.failed_count += 1;
    response.post_ids.push(0);
}
