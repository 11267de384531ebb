//! FollowerService.

use std::pin::Pin;

use futures::{Stream, stream};
use herald_model::{FollowVersion, UserKey};
use herald_proto::mesh_v1::{
    ExportFollowersRequest, ExportFollowersResponse, follower_service_server::FollowerService,
};
use herald_rpc::status;
use tonic::{Request, Response, Status};

use crate::graph::Graph;

/// The state of an export.
struct ExportCursor {
    author: UserKey,
    version: Option<FollowVersion>,
    after: Option<UserKey>,
    remaining: usize,
}

impl Graph {
    async fn export_page(&self, export: &ExportCursor) -> Result<ExportFollowersResponse, Status> {
        let limit = self.config.export_page_followers.min(export.remaining);
        let page = self
            .follows
            .followers(export.author, export.version, export.after, limit)
            .await
            .map_err(|e| status::from_store(&e))?;
        self.metrics
            .followers_exported
            .inc_by(u64::from(page.followers.len()));
        Ok(ExportFollowersResponse {
            follower_keys: page.followers.as_bytes().clone(),
            follower_count: page.followers.len(),
            notify_keys: page.notify.as_bytes().clone(),
            notify_count: page.notify.len(),
            follow_version: page.version.0,
            last_key: page.last.map_or(0, |key| key.0),
            complete: page.complete,
        })
    }
}

#[tonic::async_trait]
impl FollowerService for Graph {
    type ExportFollowersStream = Pin<Box<dyn Stream<Item = Result<ExportFollowersResponse, Status>> + Send>>;

    async fn export_followers(
        &self,
        request: Request<ExportFollowersRequest>,
    ) -> Result<Response<Self::ExportFollowersStream>, Status> {
        self.pace.note_live();
        let request = request.into_inner();
        if request.author_key == 0 {
            return Err(status::invalid(&[("author_key", "must not be 0")]));
        }
        let export = ExportCursor {
            author: UserKey(request.author_key),
            version: (request.follow_version != 0).then_some(FollowVersion(request.follow_version)),
            after: (request.after_key != 0).then_some(UserKey(request.after_key)),
            remaining: if request.limit == 0 {
                usize::MAX
            } else {
                usize::try_from(request.limit).unwrap_or(usize::MAX)
            },
        };
        let graph = self.clone();
        let pages = stream::try_unfold(Some(export), move |export| {
            let graph = graph.clone();
            async move {
                let Some(mut export) = export else { return Ok(None) };
                let page = graph.export_page(&export).await?;
                export.remaining = export.remaining.saturating_sub(page.follower_count as usize);
                // All pages have the version of the first page, also when the request asked for the newest version.
                export.version = Some(FollowVersion(page.follow_version));
                export.after = Some(UserKey(page.last_key));
                let is_last = page.complete || export.remaining == 0;
                Ok(Some((page, (!is_last).then_some(export))))
            }
        });
        Ok(Response::new(Box::pin(pages)))
    }
}
