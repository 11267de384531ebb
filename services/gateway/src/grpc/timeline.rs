//! TimelineService.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use herald_model::PostId;
use herald_proto::v1::{self, timeline_service_server::TimelineService};
use herald_rpc::{
    fields,
    fields::Violations,
    paging::{self, PageToken},
    status,
};
use herald_runtime::connections::Connection;
use herald_store::Users;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::watch;
use crate::{
    arrivals::Arrivals,
    domain::SeenPosts,
    feed::Feed,
    live::{Hub, WatchError},
    wire,
};

const LIST_TIMELINE: &str = "ListTimeline";
const PAGE_SIZE_DEFAULT: usize = 50;
const PAGE_SIZE_MAX: usize = 200;
/// Retry delay for a client after the maximum number of watchers was reached.
const WATCHERS_RETRY_AFTER: Duration = Duration::from_secs(5);

/// Implements TimelineService.
pub(crate) struct TimelineApi {
    pub(crate) users: Arc<dyn Users>,
    pub(crate) feed: Feed,
    pub(crate) hub: Hub,
    pub(crate) arrivals: Arrivals,
    pub(crate) heartbeat: Duration,
    /// Ends every WatchTimeline stream.
    pub(crate) shutdown: CancellationToken,
}

#[tonic::async_trait]
impl TimelineService for TimelineApi {
    async fn list_timeline(
        &self,
        request: Request<v1::ListTimelineRequest>,
    ) -> Result<Response<v1::ListTimelineResponse>, Status> {
        let request = request.into_inner();
        let user_id = fields::user_id("user_id", request.user_id)?;
        let size = paging::page_size(request.page_size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)?;
        let identity = paging::identity([user_id.as_str().as_bytes()]);
        let before = PageToken::decode_u64(LIST_TIMELINE, identity, &request.page_token)?.map(PostId);
        let Some(user) = super::find_user(&*self.users, user_id).await? else {
            return Ok(Response::new(v1::ListTimelineResponse::default()));
        };
        let page = self.feed.read_page(user, before, size).await?;
        Ok(Response::new(v1::ListTimelineResponse {
            entries: page.posts.into_iter().map(wire::timeline_entry_to_v1).collect(),
            rebuilding: page.rebuilding,
            next_page_token: page
                .next
                .map(|post| PageToken::encode_u64(LIST_TIMELINE, identity, post.0))
                .unwrap_or_default(),
        }))
    }

    type WatchTimelineStream = Pin<Box<dyn Stream<Item = Result<v1::WatchTimelineResponse, Status>> + Send>>;

    async fn watch_timeline(
        &self,
        request: Request<v1::WatchTimelineRequest>,
    ) -> Result<Response<Self::WatchTimelineStream>, Status> {
        let caller = Connection::caller_of(request.extensions());
        let request = request.into_inner();
        let mut violations = Violations::new();
        let user_id = violations.user_id("user_id", request.user_id);
        violations.check(
            "snapshot_size",
            request.snapshot_size >= 0,
            "must not be negative",
        );
        violations.into_result()?;
        let user_id = user_id.ok_or_else(|| status::invalid(&[("user_id", "is not valid")]))?;
        let size = paging::page_size(request.snapshot_size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)?;
        let identity = watch::token_identity(&user_id);
        let resumed = match watch::decode_token(identity, &request.resume_token) {
            Ok(cursor) => cursor
                .map(|cursor| SeenPosts::decode(&cursor).ok_or(()))
                .transpose(),
            Err(_) => Err(()),
        };
        let resumed = resumed
            .map_err(|()| status::invalid(&[("resume_token", "is not a resume token of this user")]))?;
        // A read makes no user: the watch of an unknown one waits for its key.
        let user = super::find_user(&*self.users, user_id.clone()).await?;
        let watch = self.hub.watch(user, caller).await.map_err(|e| match e {
            WatchError::TooMany { .. } => {
                status::exhausted("TOO_MANY_WATCHERS", e.to_string(), WATCHERS_RETRY_AFTER)
            }
            WatchError::Mesh(e) => status::from_mesh(&e),
        })?;
        let arrival = user.is_none().then(|| self.arrivals.of(user_id));
        let start = watch::WatchStart {
            users: Arc::clone(&self.users),
            user,
            arrival,
            identity,
            size,
            resumed,
        };
        let watch_stream = watch::WatchStream::new(
            start,
            watch,
            self.feed.clone(),
            self.heartbeat,
            self.shutdown.clone(),
        );
        Ok(Response::new(Box::pin(watch_stream.into_stream())))
    }
}
