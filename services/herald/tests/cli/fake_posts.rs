//! The fake post and timeline services.

use herald_proto::v1::{post_service_server::PostService, timeline_service_server::TimelineService, *};
use tonic::{Request, Response, Status, Streaming};

use crate::server::{RpcResult, RpcStream, Server, post, time};

#[tonic::async_trait]
impl PostService for Server {
    async fn submit_post(&self, request: Request<SubmitPostRequest>) -> RpcResult<SubmitPostResponse> {
        let request = self.record(request)?;
        Ok(Response::new(SubmitPostResponse {
            post_id: 17,
            request_id: request.request_id,
            accepted_time: Some(time(0)),
            duplicate: false,
        }))
    }

    async fn submit_posts(
        &self,
        _: Request<Streaming<SubmitPostsRequest>>,
    ) -> RpcResult<SubmitPostsResponse> {
        Err(Status::unimplemented("not used by the command line"))
    }

    async fn get_post(&self, _: Request<GetPostRequest>) -> RpcResult<GetPostResponse> {
        Err(Status::unimplemented("not used by the command line"))
    }

    async fn batch_get_posts(
        &self,
        request: Request<BatchGetPostsRequest>,
    ) -> RpcResult<BatchGetPostsResponse> {
        let mut post_ids = self.record(request)?.post_ids.into_iter();
        let posts = post_ids.by_ref().take(2).map(|id| post(id, "text")).collect();
        Ok(Response::new(BatchGetPostsResponse {
            posts,
            missing_post_ids: post_ids.collect(),
            remaining_post_ids: Vec::new(),
        }))
    }

    async fn list_posts(&self, request: Request<ListPostsRequest>) -> RpcResult<ListPostsResponse> {
        let first = self.record(request)?.page_token.is_empty();
        Ok(Response::new(ListPostsResponse {
            posts: vec![post(if first { 2 } else { 1 }, "text")],
            next_page_token: if first { "more".into() } else { String::new() },
        }))
    }

    async fn delete_post(&self, request: Request<DeletePostRequest>) -> RpcResult<DeletePostResponse> {
        self.record(request)?;
        Ok(Response::new(DeletePostResponse {}))
    }
}

#[tonic::async_trait]
impl TimelineService for Server {
    async fn list_timeline(&self, request: Request<ListTimelineRequest>) -> RpcResult<ListTimelineResponse> {
        self.record(request)?;
        Ok(Response::new(self.next_page()))
    }

    type WatchTimelineStream = RpcStream<WatchTimelineResponse>;

    async fn watch_timeline(
        &self,
        request: Request<WatchTimelineRequest>,
    ) -> RpcResult<Self::WatchTimelineStream> {
        self.record(request)?;
        Ok(Response::new(match self.next_watch() {
            Some(answers) => {
                let broken = Err(Status::unavailable("the server goes away"));
                Box::pin(tokio_stream::iter(answers.into_iter().map(Ok).chain([broken])))
            }
            None => Box::pin(tokio_stream::pending()),
        }))
    }
}
