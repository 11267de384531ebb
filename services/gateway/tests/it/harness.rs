//! A gateway with everything real around it, but the graph.

use std::{sync::Arc, time::Duration};

use herald_gateway::{Config, Deps, Error, Metrics};
use herald_local_nats::{Config as ServerConfig, Server};
use herald_mesh::{Mesh, Subject, Topology, TopologyConfig};
use herald_model::{Lane, PostId, Recipients, UserId, UserKey};
use herald_proto::{
    mesh_v1::{LiveChunks, PostCreated, TimelineChunk},
    v1::{
        self, delivery_service_client::DeliveryServiceClient, device_service_client::DeviceServiceClient,
        graph_service_client::GraphServiceClient, graph_service_server::GraphServiceServer,
        mesh_service_client::MeshServiceClient, post_service_client::PostServiceClient,
        preference_service_client::PreferenceServiceClient, timeline_service_client::TimelineServiceClient,
    },
};
use herald_push_endpoint::Policy;
use herald_runtime::{http::Flag, metrics::Shared};
use herald_store::{
    Stores,
    embedded::{self, Embedded},
};
use prost::Message as _;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel, transport::Endpoint};
use tonic_types::StatusExt as _;

use crate::{
    cut_off::{self, CutOff},
    graph::TestGraph,
};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct World {
    pub(crate) address: String,
    pub(crate) channel: Channel,
    pub(crate) mesh: Mesh,
    pub(crate) topology: Arc<Topology>,
    pub(crate) stores: Stores,
    pub(crate) graph: TestGraph,
    pub(crate) metrics: Metrics,
    pub(crate) ready: Flag,
    pub(crate) shutdown: CancellationToken,
    pub(crate) gateway: JoinHandle<Result<(), Error>>,
    /// Ends the graph service.
    pub(crate) graph_end: CancellationToken,
    pub(crate) server: Server,
    /// With [`Setup::cut_off`].
    pub(crate) cut_off: Option<CutOff>,
    _store: Embedded,
    graph_channel: Channel,
    _dir: TempDir,
}

/// What a test wants otherwise.
pub(crate) struct Setup {
    pub(crate) config: Config,
    pub(crate) topology: TopologyConfig,
    /// Whether the gateway may have to be left waiting for, as when it doesn't start.
    pub(crate) await_ready: bool,
    /// Whether there may be a server that was cut off.
    pub(crate) cut_off: bool,
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
            cut_off: false,
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
            extra: setup.cut_off.then(cut_off::server_lines).unwrap_or_default(),
            ..ServerConfig::default()
        })
        .await
        .unwrap();
        let cut_off = if setup.cut_off {
            Some(CutOff::start(server.client_url()).await)
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
        let stores = store.stores();
        if let Some(before) = setup.before {
            before(stores.clone()).await;
        }

        let graph = TestGraph::default();
        let graph_end = CancellationToken::new();
        let graph_channel = serve_graph(graph.clone(), graph_end.clone()).await;
        let metrics = Shared::new().register(Metrics::new);
        let mut world = Self {
            address: String::new(),
            channel: graph_channel.clone(),
            graph_channel,
            mesh,
            topology,
            stores,
            graph,
            metrics,
            ready: Flag::default(),
            shutdown: CancellationToken::new(),
            gateway: tokio::spawn(async { Ok(()) }),
            graph_end,
            server,
            cut_off,
            _store: store,
            _dir: dir,
        };
        world.run_gateway(setup.config).await;
        if setup.await_ready {
            until("the gateway is ready", async || world.ready.is_set()).await;
        }
        world
    }

    /// Runs a gateway, where there is none.
    async fn run_gateway(&mut self, config: Config) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.address = listener.local_addr().unwrap().to_string();
        self.channel = Endpoint::from_shared(format!("http://{}", self.address))
            .unwrap()
            .connect_lazy();
        self.ready = Flag::default();
        self.shutdown = CancellationToken::new();
        let stores = self.stores.clone();
        let deps = Deps {
            mesh: self.mesh.clone(),
            topology: self.topology.clone(),
            users: stores.users,
            posts: stores.posts,
            devices: stores.devices,
            preferences: stores.preferences,
            timelines: stores.timelines,
            ledger: stores.ledger,
            listener,
            graph: self.graph_channel.clone(),
            // Nobody there.
            analytics: Endpoint::from_static("http://127.0.0.1:1").connect_lazy(),
            deadletter: Endpoint::from_static("http://127.0.0.1:1").connect_lazy(),
            vapid_public_key: "the-vapid-key".into(),
            ready: self.ready.clone(),
            metrics: self.metrics.clone(),
        };
        self.gateway = tokio::spawn(herald_gateway::run(config, deps, self.shutdown.clone()));
    }

    /// Ends the gateway and runs another one.
    pub(crate) async fn restart(&mut self) {
        self.shutdown.cancel();
        within("the gateway ends", &mut self.gateway)
            .await
            .unwrap()
            .unwrap();
        assert!(!self.ready.is_set());
        self.run_gateway(Setup::default().config).await;
        until("the gateway is ready", async || self.ready.is_set()).await;
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
        MeshServiceClient::new(self.channel.clone())
    }

    pub(crate) fn graph_client(&self) -> GraphServiceClient<Channel> {
        GraphServiceClient::new(self.channel.clone())
    }

    /// Submits a post and answers with its id.
    pub(crate) async fn post(&self, author: &str, text: &str) -> u64 {
        self.posts()
            .submit_post(submit(author, text))
            .await
            .unwrap()
            .into_inner()
            .post_id
    }

    /// A user's key, made if there was none.
    pub(crate) async fn key(&self, user: &str) -> UserKey {
        self.stores
            .users
            .intern(&[UserId::new(user).unwrap()])
            .await
            .unwrap()[0]
    }

    /// Puts a post on a user's timeline, as the timeline service does; tells watchers if `live`.
    pub(crate) async fn deliver(&self, post: u64, user: &str, live: bool) {
        let recipients = Recipients::from_sorted([self.key(user).await]);
        self.stores
            .timelines
            .deliver(PostId(post), recipients.clone())
            .await
            .unwrap()
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
        let live = LiveChunks { chunks: vec![chunk] };
        self.mesh.publish_live(live.encode_to_vec().into()).await.unwrap();
    }

    /// Waits until the broker has forgotten the ids of all that is in POSTS.
    pub(crate) async fn until_forgotten(&self) {
        // A probe of the same age: when the broker takes it again, it has forgotten the others too.
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
        until("the broker forgets", async || !publish().await.duplicate).await;
    }

    /// Waits until the archive consumer has nothing left.
    pub(crate) async fn archived(&self) {
        let last = self.mesh.last_sequence("POSTS").await.unwrap();
        until("all is archived", async || {
            self.mesh.ack_floor("POSTS", "archive").await.unwrap() == last
        })
        .await;
    }

    /// Publishes something that is no post on POSTS.
    pub(crate) async fn publish_garbage(&self, subject: Subject) -> u64 {
        let client = async_nats::connect(self.server.client_url()).await.unwrap();
        let jetstream = async_nats::jetstream::new(client);
        let ack = jetstream
            .publish(subject.as_str(), "\u{7f}garbage".into())
            .await
            .unwrap();
        ack.await.unwrap().sequence
    }

    /// Ends the gateway and answers with what it ended with.
    pub(crate) async fn stop(self) -> Result<(), Error> {
        self.shutdown.cancel();
        tokio::time::timeout(LIMIT, self.gateway)
            .await
            .expect("the gateway ends")
            .unwrap()
    }
}

/// A config for endpoints on this machine.
pub(crate) fn private_endpoints() -> Config {
    Config {
        endpoints: Policy {
            allow_http: true,
            allow_private: true,
        },
        ..Setup::default().config
    }
}

async fn serve_graph(graph: TestGraph, end: CancellationToken) -> Channel {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder()
        .add_service(GraphServiceServer::new(graph))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), end.cancelled_owned());
    tokio::spawn(server);
    Endpoint::from_shared(url).unwrap().connect_lazy()
}

/// A post that is valid.
pub(crate) fn submit(author: &str, text: &str) -> v1::SubmitPostRequest {
    v1::SubmitPostRequest {
        author_id: author.into(),
        text: text.into(),
        ..Default::default()
    }
}

/// Waits until a condition holds.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let holds = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, holds)
        .await
        .unwrap_or_else(|_| panic!("not within {LIMIT:?}: {what}"));
}

/// Waits for a future, but not for ever.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future)
        .await
        .unwrap_or_else(|_| panic!("not within {LIMIT:?}: {what}"))
}

/// The fields that an INVALID_ARGUMENT names.
pub(crate) fn fields(status: &Status) -> Vec<String> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let violations = status
        .get_details_bad_request()
        .expect("field violations")
        .field_violations;
    assert!(violations.iter().all(|v| !v.description.is_empty()));
    violations.into_iter().map(|v| v.field).collect()
}

/// The reason that an error tells.
pub(crate) fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().expect("error info");
    assert_eq!(info.domain, "herald.dev");
    info.reason
}
