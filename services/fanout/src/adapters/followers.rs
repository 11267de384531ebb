//! Reads followers from the graph service.

use std::{pin::pin, time::Duration};

use futures::{Stream, TryStreamExt as _};
use herald_model::{FollowVersion, Recipients, UserKey};
use herald_proto::mesh_v1::{
    ExportFollowersRequest, ExportFollowersResponse, follower_service_client::FollowerServiceClient,
    follower_service_server::SERVICE_NAME as FOLLOWER_SERVICE,
};
use herald_runtime::trace::{self, Inject};
use tonic::{Code, Status, service::interceptor::InterceptedService, transport::Channel};
use tracing::Instrument as _;

use crate::{domain::Slice, error::ExpandError};

/// Limit for reading one slice. A message whose graph process hangs is retried, with another process, instead of holding
/// its permit.
const READ_LIMIT: Duration = Duration::from_secs(30);

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
    /// The follow version that was read; 0 for an author who never had a follower.
    pub(crate) version: FollowVersion,
    pub(crate) pages: Vec<Page>,
    /// The last follower of the slice; `None` if no followers are left.
    pub(crate) more_after: Option<UserKey>,
}

/// Client of the graph service.
#[derive(Debug, Clone)]
pub(crate) struct Followers {
    graph: FollowerServiceClient<InterceptedService<Channel, Inject>>,
}

impl Followers {
    pub(crate) fn new(graph: Channel) -> Self {
        Self {
            graph: FollowerServiceClient::with_interceptor(graph, Inject),
        }
    }

    /// Reads up to `recipients_max` followers at the version of the slice, or at the newest one.
    pub(crate) async fn read_slice(
        &self,
        slice: &Slice,
        recipients_max: u32,
    ) -> Result<SliceFollowers, ExpandError> {
        let request = ExportFollowersRequest {
            author_key: slice.author.0,
            // 0 asks for the newest version. Its answer includes every Follow and Unfollow answered before the call.
            follow_version: slice.version.map_or(0, |version| version.0),
            after_key: slice.after.map_or(0, |key| key.0),
            limit: recipients_max.into(),
        };
        let mut graph = self.graph.clone();
        let span = trace::client_span("fanout", FOLLOWER_SERVICE, "ExportFollowers");
        let read = async {
            let pages = graph.export_followers(request).await?.into_inner();
            read_pages(pages, recipients_max).await
        };
        let read = tokio::time::timeout(READ_LIMIT, read.instrument(span.clone())).await;
        let read = read.unwrap_or_else(|_| {
            let seconds = READ_LIMIT.as_secs();
            Err(Status::unavailable(format!("graph did not send the followers within {seconds} s")).into())
        });
        let code = match &read {
            Ok(_) => Code::Ok,
            Err(ExpandError::Graph(status)) => status.code(),
            Err(_) => Code::DataLoss,
        };
        trace::record_code(&span, code);
        read
    }
}

/// Reads the pages of one slice up to the last page, which is complete or reaches the limit. A stream that ends before
/// it is an error: followers after its end would be missing in the plan.
async fn read_pages(
    pages: impl Stream<Item = Result<ExportFollowersResponse, Status>>,
    recipients_max: u32,
) -> Result<SliceFollowers, ExpandError> {
    let mut pages = pin!(pages);
    let mut slice = SliceFollowers {
        version: FollowVersion(0),
        pages: Vec::new(),
        more_after: None,
    };
    let mut followers = 0;
    let mut ended = false;
    while let Some(page) = pages.try_next().await? {
        followers += u64::from(page.follower_count);
        ended = page.complete || followers >= u64::from(recipients_max);
        slice.version = FollowVersion(page.follow_version);
        slice.more_after = (!page.complete).then_some(UserKey(page.last_key));
        slice.pages.push(Page {
            followers: Recipients::decode(page.follower_keys, page.follower_count)?,
            notify: Recipients::decode(page.notify_keys, page.notify_count)?,
        });
    }
    if ended {
        Ok(slice)
    } else {
        Err(ExpandError::Truncated { followers })
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use herald_failure::Classify;

    use super::*;

    fn page(keys: &[u32], complete: bool) -> ExportFollowersResponse {
        let followers = Recipients::from_sorted(keys.iter().map(|key| UserKey(*key)));
        ExportFollowersResponse {
            follower_keys: followers.as_bytes().clone(),
            follower_count: followers.len(),
            last_key: keys.last().copied().unwrap_or(0),
            complete,
            ..ExportFollowersResponse::default()
        }
    }

    async fn read(pages: Vec<ExportFollowersResponse>) -> Result<SliceFollowers, ExpandError> {
        read_pages(stream::iter(pages.into_iter().map(Ok)), 4).await
    }

    #[tokio::test]
    async fn the_last_page_is_complete_or_reaches_the_limit() {
        let slice = read(vec![page(&[1, 2], false), page(&[3], true)]).await.unwrap();
        assert_eq!((slice.pages.len(), slice.more_after), (2, None));
        let slice = read(vec![page(&[1, 2], false), page(&[3, 5], false)])
            .await
            .unwrap();
        assert_eq!((slice.pages.len(), slice.more_after), (2, Some(UserKey(5))));
        let slice = read(vec![page(&[], true)]).await.unwrap();
        assert_eq!((slice.pages.len(), slice.more_after), (1, None));
    }

    #[tokio::test]
    async fn a_stream_that_ends_before_the_last_page_is_retried() {
        for pages in [
            vec![],
            vec![page(&[], false)],
            vec![page(&[1, 2], false)],
            vec![page(&[1, 2], false), page(&[3], false)],
        ] {
            let sent = pages.clone();
            match read(pages).await {
                Err(error @ ExpandError::Truncated { .. }) => assert!(error.is_transient()),
                other => panic!("{sent:?} was read as {other:?}"),
            }
        }
    }
}
