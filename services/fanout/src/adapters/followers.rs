//! Reads followers from the graph service.

use herald_model::{Recipients, UserKey};
use herald_proto::v1::{ExportFollowersRequest, graph_service_client::GraphServiceClient};
use herald_runtime::trace::Inject;
use tonic::{service::interceptor::InterceptedService, transport::Channel};

use crate::{domain::Slice, error::ExpandError};

/// One page of followers.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) followers: Recipients,
    /// The followers of the page with notifications on.
    pub(crate) notify: Recipients,
}

/// The followers of one slice.
#[derive(Debug)]
pub(crate) struct SliceFollowers {
    pub(crate) pages: Vec<Page>,
    /// The last follower of the slice; `None` if no followers are left.
    pub(crate) more_after: Option<UserKey>,
}

/// Client of the graph service.
#[derive(Debug, Clone)]
pub(crate) struct Followers {
    graph: GraphServiceClient<InterceptedService<Channel, Inject>>,
}

impl Followers {
    pub(crate) fn new(graph: Channel) -> Self {
        Self {
            graph: GraphServiceClient::with_interceptor(graph, Inject),
        }
    }

    /// Reads up to `recipients_max` followers as of the follow version of the post.
    pub(crate) async fn read_slice(
        &self,
        slice: &Slice,
        recipients_max: u32,
    ) -> Result<SliceFollowers, ExpandError> {
        // The author never had a follower. The graph service would take version 0 for the newest one.
        if slice.version.0 == 0 {
            return Ok(SliceFollowers {
                pages: Vec::new(),
                more_after: None,
            });
        }
        let request = ExportFollowersRequest {
            author_key: slice.author.0,
            follow_version: slice.version.0,
            after_key: slice.after.map_or(0, |key| key.0),
            limit: recipients_max.into(),
            ..ExportFollowersRequest::default()
        };
        let mut stream = self.graph.clone().export_followers(request).await?.into_inner();
        let mut followers = SliceFollowers {
            pages: Vec::new(),
            more_after: None,
        };
        while let Some(page) = stream.message().await? {
            followers.more_after = (!page.complete).then_some(UserKey(page.last_key));
            followers.pages.push(Page {
                followers: Recipients::decode(page.follower_keys, page.follower_count)?,
                notify: Recipients::decode(page.notify_keys, page.notify_count)?,
            });
        }
        Ok(followers)
    }
}
