//! A gateway with a real nats-server, the embedded store, the archive service and a fake graph service.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use herald_gateway::{Config, Deps, Error, Listeners, Metrics, Vapid};
use herald_local_nats::{Config as ServerConfig, Server};
use herald_mesh::{Mesh, Subject, Topology, TopologyConfig};
use herald_model::{Lane, PostId, Recipients, UserId, UserKey};
use herald_proto::{
    mesh_v1::{LiveUpdates, PostCreated, TimelineChunk},
    v1::{
        self, delivery_service_client::DeliveryServiceClient, device_service_client::DeviceServiceClient,
        graph_service_client::GraphServiceClient, graph_service_server::GraphServiceServer,
        mesh_service_client::MeshServiceClient, post_service_client::PostServiceClient,
        preference_service_client::PreferenceServiceClient, timeline_service_client::TimelineServiceClient,
    },
};
use herald_push_endpoint::Policy;
use herald_runtime::{http::Readiness, metrics::Shared, route::Route};
use herald_store::{
    Posts, Stores, Users,
    embedded::{self, Embedded},
};
use prost::Message as _;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, service::Routes, transport::Channel, transport::Endpoint};
use tonic_types::StatusExt as _;

use crate::{
    graph::TestGraph,
    partitioned_server::{self, PartitionedServer},
};

/// Timeout of every wait.
const TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) struct World {
    pub(crate) address: String,
    pub(crate) operator_address: String,
    pub(crate) channel: Channel,
    /// To the operator port.
    pub(crate) operators: Channel,
    pub(crate) mesh: Mesh,
    pub(crate) topology: Arc<Topology>,
    pub(crate) stores: Stores,
    pub(crate) graph: TestGraph,
    pub(crate) metrics: Metrics,
    pub(crate) readiness: Readiness,
    pub(crate) shutdown: CancellationToken,
    pub(crate) gateway: JoinHandle<Result<(), Error>>,
    /// Stops the graph service.
    pub(crate) graph_stop: CancellationToken,
    pub(crate) server: Server,
    /// Present with [`Setup::partitioned_server`].
    pub(crate) partitioned_server: Option<PartitionedServer>,
    _store: Embedded,
    graph_route: Route,
    _dir: TempDir,
}

/// Replaces an archive of posts.
pub(crate) type WrapPosts = Box<dyn FnOnce(Arc<dyn Posts>) -> Arc<dyn Posts>>;

/// Replaces the users.
pub(crate) type WrapUsers = Box<dyn FnOnce(Arc<dyn Users>) -> Arc<dyn Users>>;

/// Options of a test.
pub(crate) struct Setup {
    pub(crate) config: Config,
    pub(crate) topology: TopologyConfig,
    /// Whether to wait until the gateway is ready; false for a gateway that must fail to start.
    pub(crate) await_ready: bool,
    /// Whether to add a partitioned server.
    pub(crate) partitioned_server: bool,
    /// Replaces the archive of posts that the gateway gets.
    pub(crate) wrap_posts: Option<WrapPosts>,
    /// Replaces the users that the gateway gets.
    pub(crate) wrap_users: Option<WrapUsers>,
    /// Runs on the stores before the gateway starts.
    pub(crate) before: Option<Box<dyn FnOnce(Stores) -> futures::future::BoxFuture<'static, ()>>>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            config: Config {
                heartbeat_ms: 60_000,
                ..Config::default()
            },
            topology: TopologyConfig::default(),
            await_ready: true,
            partitioned_server: false,
            wrap_posts: None,
            wrap_users: None,
            before: None,
        }
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(Setup::default()).await
    }

    pub(crate) async fn start_with(setup: Setup) -> Self {
        Box::pin(Self::build(setup)).await
    }

    async fn build(setup: Setup) -> Self {
        let server = Server::start(ServerConfig {
            extra: setup
                .partitioned_server
                .then(partitioned_server::server_lines)
                .unwrap_or_default(),
            ..ServerConfig::default()
        })
        .await
        .unwrap();
        let partitioned_server = if setup.partitioned_server {
            Some(PartitionedServer::start(server.client_url()).await)
        } else {
            None
        };
        let mesh = Mesh::connect(&herald_mesh::Config::at(server.client_url()))
            .await
            .unwrap();
        let topology = Arc::new(Topology::new(&setup.topology).unwrap());
        mesh.ensure(&topology).await.unwrap();
        let dir = TempDir::new().unwrap();
        let store = embedded::Config {
            data_dir: dir.path().into(),
            ..embedded::Config::default()
        };
        let store = Embedded::open(&store).unwrap();
        let mut stores = store.stores();
        if let Some(wrap) = setup.wrap_posts {
            stores.posts = wrap(stores.posts);
        }
        if let Some(wrap) = setup.wrap_users {
            stores.users = wrap(stores.users);
        }
        if let Some(before) = setup.before {
            before(stores.clone()).await;
        }

        let graph = TestGraph::default();
        let graph_stop = CancellationToken::new();
        let graph_route = serve_graph(graph.clone(), graph_stop.clone()).await;
        let metrics = Shared::new().register(Metrics::new);
        let mut world = Self {
            address: String::new(),
            operator_address: String::new(),
            channel: graph_route.own.clone(),
            operators: graph_route.own.clone(),
            graph_route,
            mesh,
            topology,
            stores,
            graph,
            metrics,
            readiness: Readiness::new(),
            shutdown: CancellationToken::new(),
            gateway: tokio::spawn(async { Ok(()) }),
            graph_stop,
            server,
            partitioned_server,
            _store: store,
            _dir: dir,
        };
        world.run_gateway(setup.config).await;
        if setup.await_ready {
            wait_until("the gateway is ready", async || world.is_ready()).await;
        }
        world
    }

    /// Starts the gateway task.
    async fn run_gateway(&mut self, config: Config) {
        let listeners = Listeners {
            public: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            operators: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            tls: None,
        };
        self.address = listeners.public.local_addr().unwrap().to_string();
        self.operator_address = listeners.operators.local_addr().unwrap().to_string();
        let connect = |address: &str| {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
            endpoint.connect_lazy()
        };
        self.channel = connect(&self.address);
        self.operators = connect(&self.operator_address);
        self.readiness = Readiness::new();
        self.shutdown = CancellationToken::new();
        let stores = self.stores.clone();
        let deps = Deps {
            auth: herald_auth::Config::default(),
            auth_metrics: herald_auth::Metrics::default(),
            api_keys: stores.api_keys,
            rpc_metrics: herald_runtime::rpc_metrics::ServerMetrics::default(),
            mesh: self.mesh.clone(),
            topology: self.topology.clone(),
            users: stores.users,
            posts: stores.posts,
            devices: stores.devices,
            preferences: stores.preferences,
            timelines: stores.timelines,
            ledger: stores.ledger,
            dead_letters: stores.dead_letters,
            stream_marks: stores.stream_marks,
            listeners,
            graph: self.graph_route.clone(),
            // Nothing listens on port 1.
            analytics: Route::to(&Endpoint::from_static("http://127.0.0.1:1")),
            deadletter: Route::to(&Endpoint::from_static("http://127.0.0.1:1")),
            vapid: Vapid {
                public_key: Arc::new(OnceLock::from("the-vapid-key".to_owned())),
                has_subject: false,
            },
            readiness: self.readiness.clone(),
            roles: Vec::new(),
            draining: CancellationToken::new(),
            metrics: self.metrics.clone(),
        };
        let archive = herald_archive::Deps {
            mesh: self.mesh.clone(),
            topology: self.topology.clone(),
            users: self.stores.users.clone(),
            erasures: self.stores.erasures.clone(),
            posts: self.stores.posts.clone(),
            metrics: Shared::new().register(herald_archive::Metrics::new),
        };
        // Stops after the gateway: DeletePost waits for the archive.
        let archive_stop = CancellationToken::new();
        let archive = herald_archive::run(herald_archive::Config::default(), archive, archive_stop.clone());
        let gateway = herald_gateway::run(config, deps, self.shutdown.clone());
        self.gateway = tokio::spawn(async move {
            let archive = tokio::spawn(archive);
            let served = gateway.await;
            archive_stop.cancel();
            let _ = archive.await;
            served
        });
    }

    /// Stops the gateway and starts another one on the same store and broker.
    pub(crate) async fn restart(&mut self) {
        self.shutdown.cancel();
        with_timeout("the gateway stops", &mut self.gateway)
            .await
            .unwrap()
            .unwrap();
        assert!(!self.is_ready());
        self.run_gateway(Setup::default().config).await;
        wait_until("the gateway is ready", async || self.is_ready()).await;
    }

    /// Whether the gateway serves calls and accepts posts.
    pub(crate) fn is_ready(&self) -> bool {
        !self.readiness.states().is_empty() && self.readiness.failing().is_empty()
    }

    pub(crate) fn posts(&self) -> PostServiceClient<Channel> {
        PostServiceClient::new(self.channel.clone())
    }

    pub(crate) fn timelines(&self) -> TimelineServiceClient<Channel> {
        TimelineServiceClient::new(self.channel.clone())
    }

    pub(crate) fn devices(&self) -> DeviceServiceClient<Channel> {
        DeviceServiceClient::new(self.channel.clone())
    }

    pub(crate) fn preferences(&self) -> PreferenceServiceClient<Channel> {
        PreferenceServiceClient::new(self.channel.clone())
    }

    pub(crate) fn deliveries(&self) -> DeliveryServiceClient<Channel> {
        DeliveryServiceClient::new(self.channel.clone())
    }

    pub(crate) fn lags(&self) -> MeshServiceClient<Channel> {
        MeshServiceClient::new(self.operators.clone())
    }

    pub(crate) fn graph_client(&self) -> GraphServiceClient<Channel> {
        GraphServiceClient::new(self.channel.clone())
    }

    /// Submits a post and returns its id.
    pub(crate) async fn post(&self, author: &str, text: &str) -> u64 {
        self.posts()
            .submit_post(submit(author, text))
            .await
            .unwrap()
            .into_inner()
            .post_id
    }

    /// Looks up a user's key, or assigns one.
    pub(crate) async fn key(&self, user: &str) -> UserKey {
        self.stores
            .users
            .intern(&[UserId::new(user).unwrap()])
            .await
            .unwrap()[0]
    }

    /// Delivers a post to a user's timeline, as the timeline service does, and publishes the live message if `live`.
    pub(crate) async fn deliver(&self, post: u64, user: &str, live: bool) {
        let recipients = Recipients::from_sorted([self.key(user).await]);
        self.stores
            .timelines
            .deliver(PostId(post), recipients.clone())
            .await
            .unwrap()
            .durable
            .await
            .unwrap();
        if live {
            self.publish_live(post, &recipients).await;
        }
    }

    pub(crate) async fn publish_live(&self, post: u64, recipients: &Recipients) {
        let chunk = TimelineChunk {
            post_id: post,
            recipients: recipients.as_bytes().clone(),
            recipient_count: recipients.len(),
            ..Default::default()
        };
        let live = LiveUpdates {
            chunks: vec![chunk],
            ..Default::default()
        };
        self.mesh.publish_live(live.encode_to_vec().into()).await.unwrap();
    }

    /// Waits until the dedupe window of every message in POSTS has passed.
    pub(crate) async fn wait_until_dedupe_window_passed(&self) {
        // Once the broker accepts the id of this probe again, the window of all earlier messages has passed too.
        let probe = PostCreated {
            author_key: 1,
            author_id: "107".into(),
            ..Default::default()
        };
        let publish = async || {
            let subject = Subject::PostCreated(Lane::Low);
            self.mesh.publish(subject, Some("probe"), &probe).await.unwrap()
        };
        publish().await;
        wait_until("the dedupe window has passed", async || {
            !publish().await.duplicate
        })
        .await;
    }

    /// Waits until the archive consumer has acknowledged every message.
    pub(crate) async fn wait_until_archived(&self) {
        let last = self.mesh.last_sequence("POSTS").await.unwrap();
        wait_until("every message is archived", async || {
            self.mesh.ack_floor("POSTS", "archive").await.unwrap() == last
        })
        .await;
    }

    /// Publishes a malformed message on POSTS and returns its sequence.
    pub(crate) async fn publish_garbage(&self, subject: Subject) -> u64 {
        let client = async_nats::connect(self.server.client_url()).await.unwrap();
        let jetstream = async_nats::jetstream::new(client);
        let ack = jetstream
            .publish(subject.as_str(), "\u{7f}garbage".into())
            .await
            .unwrap();
        ack.await.unwrap().sequence
    }

    /// Stops the gateway and returns its result.
    pub(crate) async fn stop(self) -> Result<(), Error> {
        self.shutdown.cancel();
        tokio::time::timeout(TIMEOUT, self.gateway)
            .await
            .expect("the gateway stops")
            .unwrap()
    }
}

/// A configuration that accepts endpoints on this machine.
pub(crate) fn private_endpoints() -> Config {
    Config {
        endpoints: Policy {
            allow_http: true,
            allow_private: true,
        },
        ..Setup::default().config
    }
}

async fn serve_graph(graph: TestGraph, stop: CancellationToken) -> Route {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let routes = Routes::new(GraphServiceServer::new(graph));
    let server = herald_runtime::grpc::serve_routes(listener, None, routes, stop);
    tokio::spawn(server);
    Route::to(&Endpoint::from_shared(url).unwrap())
}

/// A valid request.
pub(crate) fn submit(author: &str, text: &str) -> v1::SubmitPostRequest {
    v1::SubmitPostRequest {
        author_id: author.into(),
        text: text.into(),
        ..Default::default()
    }
}

/// Waits until a condition holds, at most `TIMEOUT`.
pub(crate) async fn wait_until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let holds = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, holds)
        .await
        .unwrap_or_else(|_| panic!("timeout after {TIMEOUT:?}: {what}"));
}

/// Waits for a future, at most `TIMEOUT`.
pub(crate) async fn with_timeout<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, future)
        .await
        .unwrap_or_else(|_| panic!("timeout after {TIMEOUT:?}: {what}"))
}

/// The fields named by an INVALID_ARGUMENT status.
pub(crate) fn fields(status: &Status) -> Vec<String> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let violations = status
        .get_details_bad_request()
        .expect("field violations")
        .field_violations;
    assert!(violations.iter().all(|v| !v.description.is_empty()));
    violations.into_iter().map(|v| v.field).collect()
}

/// The reason in the error info of a status.
pub(crate) fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().expect("error info");
    assert_eq!(info.domain, "herald.dev");
    info.reason
}
