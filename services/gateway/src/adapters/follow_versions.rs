//! Reads the follow version of an author.

use std::time::Duration;

use async_trait::async_trait;
use herald_model::{FollowVersion, UserId};
use herald_proto::v1::{CountFollowersRequest, graph_service_client::GraphServiceClient};
use herald_rpc::status;
use herald_runtime::trace::Inject;
use tonic::{Code, Request, Status, service::interceptor::InterceptedService, transport::Channel};

/// Source of follow versions: the number of changes of an author's followers.
#[async_trait]
pub trait FollowVersions: Send + Sync {
    /// Reads the author's follow version. It includes every follow and unfollow that was answered before the call.
    async fn current(&self, author: &UserId) -> Result<FollowVersion, Status>;
}

/// Reads follow versions from the graph service. They are not cached: a post that is accepted after a follow was
/// answered must reach that follower.
pub(crate) struct GraphFollowVersions {
    client: GraphServiceClient<InterceptedService<Channel, Inject>>,
    timeout: Duration,
}

impl GraphFollowVersions {
    pub(crate) fn new(channel: Channel, timeout: Duration) -> Self {
        Self {
            client: GraphServiceClient::with_interceptor(channel, Inject),
            timeout,
        }
    }
}

#[async_trait]
impl FollowVersions for GraphFollowVersions {
    async fn current(&self, author: &UserId) -> Result<FollowVersion, Status> {
        let mut request = Request::new(CountFollowersRequest {
            author_id: author.as_str().into(),
        });
        request.set_timeout(self.timeout);
        let response = tokio::time::timeout(self.timeout, self.client.clone().count_followers(request)).await;
        match response {
            Ok(Ok(response)) => Ok(FollowVersion(response.into_inner().follow_version)),
            Ok(Err(error))
                if !matches!(
                    error.code(),
                    Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
                ) =>
            {
                Err(status::internal(&error))
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "graph service unavailable");
                Err(graph_unavailable())
            }
            Err(_) => {
                tracing::warn!(timeout_ms = self.timeout.as_millis(), "graph service timed out");
                Err(graph_unavailable())
            }
        }
    }
}

fn graph_unavailable() -> Status {
    status::unavailable(
        "GRAPH_UNAVAILABLE",
        "the graph service is not available; retry later",
    )
}
