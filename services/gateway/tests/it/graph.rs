//! A fake graph service with configured responses; it records the requests it received.

use std::sync::Arc;

use herald_proto::v1::{self, graph_service_server::GraphService};
use parking_lot::Mutex;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

/// A fake graph service.
#[derive(Clone, Default)]
pub(crate) struct TestGraph {
    pub(crate) state: Arc<Mutex<State>>,
}

#[derive(Default)]
pub(crate) struct State {
    /// Whether CountFollowers returns UNAVAILABLE.
    pub(crate) down: bool,
    /// Value of the `x-test` header of the last Follow call.
    pub(crate) header: Option<String>,
    /// Value of the `grpc-timeout` header of the last call.
    pub(crate) timeout: Option<String>,
    /// Whether Follow and ImportFollows never end.
    pub(crate) stalled: bool,
    /// Number of followers that ListFollowers returns.
    pub(crate) page: usize,
    /// Number of calls of ImportFollows.
    pub(crate) imports: usize,
    /// Number of imported follows.
    pub(crate) imported: u64,
}

fn unused<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not in this test"))
}

impl TestGraph {
    /// Records the deadline of a call, and never returns while the service is stalled.
    async fn begin<T>(&self, request: &Request<T>) {
        let timeout = request.metadata().get("grpc-timeout");
        let timeout = timeout.map(|value| value.to_str().unwrap().to_owned());
        let stalled = {
            let mut state = self.state.lock();
            state.timeout = timeout;
            state.stalled
        };
        if stalled {
            std::future::pending::<()>().await;
        }
    }
}

#[tonic::async_trait]
impl GraphService for TestGraph {
    async fn follow(
        &self,
        request: Request<v1::FollowRequest>,
    ) -> Result<Response<v1::FollowResponse>, Status> {
        self.begin(&request).await;
        let header = request
            .metadata()
            .get("x-test")
            .map(|value| value.to_str().unwrap().to_owned());
        self.state.lock().header = header;
        if request.into_inner().follow.is_none() {
            let details = ErrorDetails::with_bad_request_violation("follow", "must be given");
            return Err(Status::with_error_details(
                Code::InvalidArgument,
                "no follow",
                details,
            ));
        }
        let mut response = Response::new(v1::FollowResponse {
            changed: true,
            notify: true,
        });
        response
            .metadata_mut()
            .insert("x-answer", "here".parse().unwrap());
        Ok(response)
    }

    async fn batch_follow(
        &self,
        _: Request<v1::BatchFollowRequest>,
    ) -> Result<Response<v1::BatchFollowResponse>, Status> {
        unused()
    }

    async fn is_following(
        &self,
        _: Request<v1::IsFollowingRequest>,
    ) -> Result<Response<v1::IsFollowingResponse>, Status> {
        unused()
    }

    async fn unfollow(
        &self,
        _: Request<v1::UnfollowRequest>,
    ) -> Result<Response<v1::UnfollowResponse>, Status> {
        unused()
    }

    async fn list_followers(
        &self,
        _: Request<v1::ListFollowersRequest>,
    ) -> Result<Response<v1::ListFollowersResponse>, Status> {
        let follow = v1::Follow {
            follower_id: "a".repeat(64),
            author_id: "b".repeat(64),
            notify: None,
        };
        Ok(Response::new(v1::ListFollowersResponse {
            follows: vec![follow; self.state.lock().page],
            ..Default::default()
        }))
    }

    async fn list_following(
        &self,
        _: Request<v1::ListFollowingRequest>,
    ) -> Result<Response<v1::ListFollowingResponse>, Status> {
        unused()
    }

    async fn count_followers(
        &self,
        _: Request<v1::CountFollowersRequest>,
    ) -> Result<Response<v1::CountFollowersResponse>, Status> {
        let state = self.state.lock();
        if state.down {
            return Err(Status::unavailable("down"));
        }
        Ok(Response::new(v1::CountFollowersResponse { ..Default::default() }))
    }

    async fn import_follows(
        &self,
        request: Request<Streaming<v1::ImportFollowsRequest>>,
    ) -> Result<Response<v1::ImportFollowsResponse>, Status> {
        self.begin(&request).await;
        self.state.lock().imports += 1;
        let mut batches = request.into_inner();
        while let Some(batch) = batches.message().await? {
            self.state.lock().imported += batch.follows.len() as u64;
        }
        let imported_count = self.state.lock().imported;
        Ok(Response::new(v1::ImportFollowsResponse {
            imported_count,
            ..Default::default()
        }))
    }
}
