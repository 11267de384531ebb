//! A fake server: it records requests and sends prepared responses, to test the command line alone. Tests of other
//! packages run commands against a real server.

mod devices;

use std::{
    any::Any,
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
};

use herald_proto::v1::{
    analytics_service_server::AnalyticsServiceServer,
    audit_service_server::AuditServiceServer,
    dead_letter_service_server::DeadLetterServiceServer,
    delivery_service_server::{DeliveryService, DeliveryServiceServer},
    device_service_server::DeviceServiceServer,
    graph_service_server::{GraphService, GraphServiceServer},
    mesh_service_server::MeshServiceServer,
    post_service_server::PostServiceServer,
    preference_service_server::{PreferenceService, PreferenceServiceServer},
    timeline_service_server::TimelineServiceServer,
    user_data_service_server::UserDataServiceServer,
    watch_timeline_response::Event,
    *,
};
use prost::Message as _;
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::{Stream, wrappers::TcpListenerStream};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _, pb};

use crate::fake_user_data::Erasures;

pub(crate) type RpcResult<T> = Result<Response<T>, Status>;
pub(crate) type RpcStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A running fake server; it stops with the test's runtime.
#[derive(Clone)]
pub(crate) struct Server {
    state: Arc<State>,
    pub(crate) url: String,
}

#[derive(Default)]
struct State {
    calls: Mutex<Vec<Box<dyn Any + Send>>>,
    failures: Mutex<VecDeque<Status>>,
    deliveries: Mutex<VecDeque<GetDeliveryResponse>>,
    explanation: Mutex<Option<ExplainDeliveryResponse>>,
    rejected_follows: Mutex<Vec<ImportFailure>>,
    imports_held: watch::Sender<bool>,
    timelines: Mutex<VecDeque<ListTimelineResponse>>,
    watches: Mutex<VecDeque<Vec<WatchTimelineResponse>>>,
    redrives: Mutex<VecDeque<Vec<Redrive>>>,
    actors: Mutex<Vec<String>>,
    audits: Mutex<VecDeque<Vec<RunAuditResponse>>>,
    rebuilds: Mutex<VecDeque<Vec<Result<RebuildTimelinesResponse, Status>>>>,
    erasures: Erasures,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Self {
            state: Arc::default(),
            url,
        };
        let router = tonic::transport::Server::builder()
            .add_service(PostServiceServer::new(server.clone()))
            .add_service(GraphServiceServer::new(server.clone()))
            .add_service(DeviceServiceServer::new(server.clone()))
            .add_service(PreferenceServiceServer::new(server.clone()))
            .add_service(TimelineServiceServer::new(server.clone()))
            .add_service(DeliveryServiceServer::new(server.clone()))
            .add_service(AnalyticsServiceServer::new(server.clone()))
            .add_service(MeshServiceServer::new(server.clone()))
            .add_service(AuditServiceServer::new(server.clone()))
            .add_service(DeadLetterServiceServer::new(server.clone()))
            .add_service(UserDataServiceServer::new(server.clone()));
        tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        server
    }

    /// The erasures of users.
    pub(crate) fn erasures(&self) -> &Erasures {
        &self.state.erasures
    }

    /// The recorded requests of this type, oldest first.
    pub(crate) fn calls<T: Clone + 'static>(&self) -> Vec<T> {
        let calls = self.state.calls.lock().unwrap();
        calls
            .iter()
            .filter_map(|call| call.downcast_ref::<T>())
            .cloned()
            .collect()
    }

    /// The only recorded request of this type.
    pub(crate) fn call<T: Clone + 'static>(&self) -> T {
        let mut calls = self.calls::<T>();
        assert_eq!(calls.len(), 1, "calls of {}", std::any::type_name::<T>());
        calls.remove(0)
    }

    /// Makes the next calls fail with these statuses, in order.
    pub(crate) fn fail(&self, failures: impl IntoIterator<Item = Status>) {
        self.state.failures.lock().unwrap().extend(failures);
    }

    /// Sets the response of every `ExplainDelivery`.
    pub(crate) fn set_explanation(&self, explanation: ExplainDeliveryResponse) {
        *self.state.explanation.lock().unwrap() = Some(explanation);
    }

    /// Sets the responses of `GetDelivery`, in order; the last one repeats.
    pub(crate) fn set_deliveries(&self, answers: impl IntoIterator<Item = GetDeliveryResponse>) {
        self.state.deliveries.lock().unwrap().extend(answers);
    }

    /// Import calls get no answer while `held`.
    pub(crate) fn hold_imports(&self, held: bool) {
        self.state.imports_held.send_replace(held);
    }

    /// Makes the next import call reject this follow.
    pub(crate) fn reject_follow(&self, index: u64, field: &str, message: &str) {
        let details = ErrorDetails::with_bad_request_violation(field, message);
        let refused = Status::with_error_details(Code::InvalidArgument, message, details);
        let failure = ImportFailure {
            index,
            status: Some(pb::Status::decode(refused.details()).unwrap()),
        };
        self.state.rejected_follows.lock().unwrap().push(failure);
    }

    /// Adds a page to the responses of `ListTimeline`, in order.
    pub(crate) fn add_page(&self, posts: impl IntoIterator<Item = Post>, next_page_token: &str) {
        let entries = posts
            .into_iter()
            .map(|post| TimelineEntry { post: Some(post) })
            .collect();
        let page = ListTimelineResponse {
            entries,
            next_page_token: next_page_token.into(),
            rebuilding: false,
        };
        self.state.timelines.lock().unwrap().push_back(page);
    }

    /// Adds an empty page of a timeline that is being rebuilt to the responses of `ListTimeline`.
    pub(crate) fn add_rebuilding_page(&self) {
        let page = ListTimelineResponse {
            rebuilding: true,
            ..ListTimelineResponse::default()
        };
        self.state.timelines.lock().unwrap().push_back(page);
    }

    /// Adds a response of `WatchTimeline`: the stream sends these events and fails with UNAVAILABLE. Without prepared
    /// responses the stream stays open and sends nothing.
    pub(crate) fn add_watch(
        &self,
        snapshot: impl IntoIterator<Item = Post>,
        entries: impl IntoIterator<Item = Post>,
        resume_token: &str,
    ) {
        let entry = |post| TimelineEntry { post: Some(post) };
        let snapshot = TimelineSnapshot {
            entries: snapshot.into_iter().map(entry).collect(),
        };
        let mut events = vec![Event::Snapshot(snapshot)];
        events.extend(entries.into_iter().map(|post| Event::Entry(entry(post))));
        self.add_watch_events(events, resume_token);
    }

    /// Adds a response of `WatchTimeline` with these events.
    pub(crate) fn add_watch_events(&self, events: Vec<Event>, resume_token: &str) {
        let response = |event| WatchTimelineResponse {
            event: Some(event),
            resume_token: resume_token.into(),
            server_time: Some(time(0)),
        };
        self.state
            .watches
            .lock()
            .unwrap()
            .push_back(events.into_iter().map(response).collect());
    }

    pub(crate) fn next_page(&self) -> ListTimelineResponse {
        let page = self.state.timelines.lock().unwrap().pop_front();
        page.unwrap_or_default()
    }

    pub(crate) fn next_watch(&self) -> Option<Vec<WatchTimelineResponse>> {
        self.state.watches.lock().unwrap().pop_front()
    }

    /// Adds a response of `RedriveDeadLetters`.
    pub(crate) fn add_redrive(&self, progress: impl IntoIterator<Item = Redrive>) {
        let progress = progress.into_iter().collect();
        self.state.redrives.lock().unwrap().push_back(progress);
    }

    pub(crate) fn next_redrive(&self) -> Vec<Redrive> {
        self.state
            .redrives
            .lock()
            .unwrap()
            .pop_front()
            .unwrap_or_default()
    }

    /// Adds a response of `RunAudit`.
    pub(crate) fn add_audit(&self, events: impl IntoIterator<Item = run_audit_response::Event>) {
        let responses = events
            .into_iter()
            .map(|event| RunAuditResponse { event: Some(event) });
        self.state.audits.lock().unwrap().push_back(responses.collect());
    }

    pub(crate) fn next_audit(&self) -> Vec<RunAuditResponse> {
        self.state.audits.lock().unwrap().pop_front().unwrap_or_default()
    }

    /// Adds a response of `RebuildTimelines`.
    pub(crate) fn add_rebuild(
        &self,
        responses: impl IntoIterator<Item = Result<RebuildTimelinesResponse, Status>>,
    ) {
        let responses = responses.into_iter().collect();
        self.state.rebuilds.lock().unwrap().push_back(responses);
    }

    pub(crate) fn next_rebuild(&self) -> Vec<Result<RebuildTimelinesResponse, Status>> {
        self.state
            .rebuilds
            .lock()
            .unwrap()
            .pop_front()
            .unwrap_or_default()
    }

    /// The recorded actors, oldest first.
    pub(crate) fn actors(&self) -> Vec<String> {
        self.state.actors.lock().unwrap().clone()
    }

    /// Records the actor of a call.
    pub(crate) fn record_actor<T>(&self, request: &Request<T>) {
        let actor = request.metadata().get("herald-actor");
        let actor = actor.map(|actor| actor.to_str().unwrap().to_owned());
        self.state.actors.lock().unwrap().extend(actor);
    }

    /// Records a request; fails with the next prepared failure.
    pub(crate) fn record<T: Clone + Send + 'static>(&self, request: Request<T>) -> Result<T, Status> {
        let request = request.into_inner();
        self.state.calls.lock().unwrap().push(Box::new(request.clone()));
        self.next_failure()?;
        Ok(request)
    }

    fn next_failure(&self) -> Result<(), Status> {
        self.state
            .failures
            .lock()
            .unwrap()
            .pop_front()
            .map_or(Ok(()), Err)
    }
}

/// 2026-01-31T08:00:00Z plus `seconds`.
pub(crate) fn time(seconds: i64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: 1_769_846_400 + seconds,
        nanos: 0,
    }
}

pub(crate) fn post(post_id: u64, text: &str) -> Post {
    Post {
        post_id,
        author_id: "107".into(),
        text: text.into(),
        lane: Lane::Normal.into(),
        accepted_time: Some(time(0)),
        ..Post::default()
    }
}

#[tonic::async_trait]
impl GraphService for Server {
    async fn follow(&self, request: Request<FollowRequest>) -> RpcResult<FollowResponse> {
        let follow = request.get_ref().follow.clone();
        self.record(request)?;
        Ok(Response::new(FollowResponse {
            changed: true,
            notify: follow.and_then(|follow| follow.notify).unwrap_or(false),
        }))
    }

    async fn batch_follow(&self, request: Request<BatchFollowRequest>) -> RpcResult<BatchFollowResponse> {
        let changed_count = self.record(request)?.follows.len() as u64;
        Ok(Response::new(BatchFollowResponse {
            changed_count,
            unchanged_count: 0,
        }))
    }

    async fn is_following(&self, request: Request<IsFollowingRequest>) -> RpcResult<IsFollowingResponse> {
        let following = self.record(request)?.author_id == "107";
        Ok(Response::new(IsFollowingResponse {
            following,
            notify: following,
        }))
    }

    async fn unfollow(&self, request: Request<UnfollowRequest>) -> RpcResult<UnfollowResponse> {
        self.record(request)?;
        Ok(Response::new(UnfollowResponse { changed: false }))
    }

    async fn list_followers(&self, _: Request<ListFollowersRequest>) -> RpcResult<ListFollowersResponse> {
        Err(Status::unimplemented("not used by the command line"))
    }

    async fn list_following(&self, _: Request<ListFollowingRequest>) -> RpcResult<ListFollowingResponse> {
        Err(Status::unimplemented("not used by the command line"))
    }

    async fn count_followers(&self, _: Request<CountFollowersRequest>) -> RpcResult<CountFollowersResponse> {
        Err(Status::unimplemented("not used by the command line"))
    }

    async fn import_follows(
        &self,
        request: Request<Streaming<ImportFollowsRequest>>,
    ) -> RpcResult<ImportFollowsResponse> {
        let mut batches = request.into_inner();
        let mut received = 0;
        while let Some(batch) = batches.message().await? {
            received += batch.follows.len() as u64;
            self.state.calls.lock().unwrap().push(Box::new(batch));
            self.next_failure()?;
        }
        let mut held = self.state.imports_held.subscribe();
        held.wait_for(|held| !held).await.unwrap();
        let failures = std::mem::take(&mut *self.state.rejected_follows.lock().unwrap());
        let failed_count = failures.len() as u64;
        let imported_count = received - failed_count;
        Ok(Response::new(ImportFollowsResponse {
            imported_count,
            unchanged_count: 0,
            failed_count,
            failures,
        }))
    }
}

#[tonic::async_trait]
impl PreferenceService for Server {
    async fn get_preferences(
        &self,
        request: Request<GetPreferencesRequest>,
    ) -> RpcResult<GetPreferencesResponse> {
        self.record(request)?;
        let preferences = Preferences {
            push_enabled: true,
            muted_author_ids: vec!["42".into()],
        };
        Ok(Response::new(GetPreferencesResponse {
            preferences: Some(preferences),
        }))
    }

    async fn update_preferences(
        &self,
        request: Request<UpdatePreferencesRequest>,
    ) -> RpcResult<UpdatePreferencesResponse> {
        let request = self.record(request)?;
        let preferences = Preferences {
            push_enabled: request.preferences.is_none_or(|values| values.push_enabled),
            muted_author_ids: request.mute_author_ids,
        };
        Ok(Response::new(UpdatePreferencesResponse {
            preferences: Some(preferences),
        }))
    }
}

#[tonic::async_trait]
impl DeliveryService for Server {
    async fn get_delivery(&self, request: Request<GetDeliveryRequest>) -> RpcResult<GetDeliveryResponse> {
        self.record(request)?;
        let mut answers = self.state.deliveries.lock().unwrap();
        let answer = if answers.len() > 1 {
            answers.pop_front()
        } else {
            answers.front().cloned()
        };
        answer
            .map(Response::new)
            .ok_or_else(|| Status::not_found("there is no such post"))
    }

    async fn explain_delivery(
        &self,
        request: Request<ExplainDeliveryRequest>,
    ) -> RpcResult<ExplainDeliveryResponse> {
        self.record(request)?;
        let answer = self.state.explanation.lock().unwrap().clone();
        answer
            .map(Response::new)
            .ok_or_else(|| Status::not_found("there is no such post"))
    }

    async fn list_recipients(
        &self,
        request: Request<ListRecipientsRequest>,
    ) -> RpcResult<ListRecipientsResponse> {
        let state = self.record(request)?.state;
        let recipients = vec![Recipient {
            user_id: "5".into(),
            state,
            ..Recipient::default()
        }];
        Ok(Response::new(ListRecipientsResponse {
            recipients,
            next_page_token: String::new(),
        }))
    }
}
