//! Starts nats-server, the embedded store, the graph service and the fanout service.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use herald_fanout::{Config, Deps, Error, Metrics, run};
use herald_local_nats::Server;
use herald_mesh::{Mesh, Subject, Topology, TopologyConfig, streams};
use herald_model::{FollowVersion, Lane, PostId, Recipients, UserId, UserKey};
use herald_proto::mesh_v1::{PostCreated, TimelineChunk};
use herald_runtime::metrics::Shared;
use herald_store::{
    FollowAction, FollowChange, Ledger, Stores,
    embedded::{self, Embedded},
};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

/// Timeout of [`until`].
const TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) struct World {
    pub(crate) mesh: Mesh,
    pub(crate) stores: Stores,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: CancellationToken,
    graph_address: SocketAddr,
    graph: Option<(CancellationToken, JoinHandle<()>)>,
    pub(crate) service: JoinHandle<Result<(), Error>>,
    _store: Embedded,
    _data: TempDir,
    server: Server,
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl World {
    pub(crate) async fn start(config: Config) -> Self {
        Self::with_ledger(config, |ledger| ledger).await
    }

    /// Starts a fanout service with a ledger that wraps the real one.
    pub(crate) async fn with_ledger(
        config: Config,
        ledger: impl FnOnce(Arc<dyn Ledger>) -> Arc<dyn Ledger>,
    ) -> Self {
        let data = tempfile::tempdir().unwrap();
        let server = Server::start(herald_local_nats::Config::default()).await.unwrap();
        let mesh = Mesh::connect(&herald_mesh::Config::at(server.client_url()))
            .await
            .unwrap();
        let mut topology = TopologyConfig::default();
        topology.consumers.slice.fault_attempts_max = 2;
        let topology = Arc::new(Topology::new(&topology).unwrap());
        mesh.ensure(&topology).await.unwrap();
        let store = Embedded::open(&embedded::Config {
            data_dir: data.path().join("store"),
            disk_free_mb_min: 0,
            ..embedded::Config::default()
        })
        .unwrap();
        let stores = store.stores();
        let shutdown = CancellationToken::new();
        let metrics = Shared::new().register(Metrics::new);

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let graph_address = listener.local_addr().unwrap();
        let graph = start_graph(&mesh, &stores, listener);
        let deps = Deps {
            mesh: mesh.clone(),
            topology,
            lanes: herald_model::Lane::ALL.into(),
            users: stores.users.clone(),
            ledger: ledger(stores.ledger.clone()),
            graph: Endpoint::from_shared(format!("http://{graph_address}"))
                .unwrap()
                .connect_lazy(),
            metrics: metrics.clone(),
        };
        Self {
            service: tokio::spawn(run(config, deps, shutdown.clone())),
            mesh,
            stores,
            metrics,
            shutdown,
            graph_address,
            graph: Some(graph),
            _store: store,
            _data: data,
            server,
        }
    }

    /// Stops the graph service; its port refuses connections on return.
    pub(crate) async fn stop_graph(&mut self) {
        let (stop, service) = self.graph.take().unwrap();
        stop.cancel();
        service.await.unwrap();
    }

    /// Starts the graph service again, on the same port.
    pub(crate) async fn restart_graph(&mut self) {
        let listener = TcpListener::bind(self.graph_address).await.unwrap();
        self.graph = Some(start_graph(&self.mesh, &self.stores, listener));
    }

    /// Publishes a post of an author; returns its id.
    pub(crate) async fn post(&self, author: UserKey, lane: Lane) -> PostId {
        self.post_of(author, "author", lane).await
    }

    /// Publishes a post whose message has this key and this id of the author; returns its id.
    pub(crate) async fn post_of(&self, author: UserKey, author_id: &str, lane: Lane) -> PostId {
        let post = PostCreated {
            author_key: author.0,
            author_id: author_id.into(),
            ..PostCreated::default()
        };
        let published = self.mesh.publish(Subject::PostCreated(lane), None, &post).await;
        PostId(published.unwrap().sequence)
    }

    /// Post id and recipients of all chunks in TIMELINE, in the order of the stream.
    pub(crate) async fn chunks(&self) -> Vec<(u64, Vec<UserKey>)> {
        let mut chunks = Vec::new();
        for sequence in 1..=self.mesh.last_sequence(streams::TIMELINE).await.unwrap() {
            let message = self.mesh.message(streams::TIMELINE, sequence).await.unwrap();
            let chunk: TimelineChunk = message.unwrap().decode().unwrap();
            let recipients = Recipients::decode(chunk.recipients, chunk.recipient_count).unwrap();
            chunks.push((chunk.post_id, recipients.iter().collect()));
        }
        chunks
    }

    /// Creates users and returns their keys.
    pub(crate) async fn users(&self, count: usize) -> Vec<UserKey> {
        let ids: Vec<UserId> = (0..count)
            .map(|n| UserId::new(format!("user {n}")).unwrap())
            .collect();
        self.stores.users.intern(&ids).await.unwrap()
    }

    /// Number of deliveries of a consumer of POSTS, redeliveries included.
    pub(crate) async fn deliveries(&self, consumer: &str) -> u64 {
        let client = async_nats::connect(self.server.client_url()).await.unwrap();
        let stream = async_nats::jetstream::new(client)
            .get_stream("POSTS")
            .await
            .unwrap();
        let info = stream.consumer_info(consumer).await.unwrap();
        info.delivered.consumer_sequence
    }

    /// Removes all chunks of TIMELINE.
    pub(crate) async fn purge_timeline(&self) {
        let client = async_nats::connect(self.server.client_url()).await.unwrap();
        let stream = async_nats::jetstream::new(client)
            .get_stream("TIMELINE")
            .await
            .unwrap();
        stream.purge().await.unwrap();
    }

    /// Removes followers.
    pub(crate) async fn unfollow(&self, author: UserKey, followers: &[UserKey]) {
        let changes: Vec<FollowChange> = followers
            .iter()
            .map(|follower| FollowChange {
                follower: *follower,
                author,
                action: FollowAction::Unfollow,
            })
            .collect();
        self.stores.follows.apply(&changes).await.unwrap();
    }

    /// Adds followers without notifications; returns the new follow version.
    pub(crate) async fn follow(&self, author: UserKey, followers: &[UserKey]) -> FollowVersion {
        let follows: Vec<FollowChange> = followers
            .iter()
            .map(|follower| FollowChange {
                follower: *follower,
                author,
                action: FollowAction::Follow { notify: None },
            })
            .collect();
        self.stores.follows.apply(&follows).await.unwrap();
        self.stores.follows.count(author).await.unwrap().version
    }
}

fn start_graph(mesh: &Mesh, stores: &Stores, listener: TcpListener) -> (CancellationToken, JoinHandle<()>) {
    let deps = herald_graph::Deps {
        mesh: mesh.clone(),
        users: stores.users.clone(),
        follows: stores.follows.clone(),
        posts: stores.posts.clone(),
        listener: listener.into(),
        metrics: Shared::new().register(herald_graph::Metrics::new),
    };
    let stop = CancellationToken::new();
    let service = herald_graph::run(herald_graph::Config::default(), deps, stop.clone());
    let service = tokio::spawn(async move { service.await.unwrap() });
    (stop, service)
}

/// Waits until a condition is true; panics after [`TIMEOUT`].
pub(crate) async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    let mut interval = tokio::time::interval(Duration::from_millis(5));
    while !condition().await {
        assert!(
            started.elapsed() < TIMEOUT,
            "the condition was not true within {TIMEOUT:?}"
        );
        interval.tick().await;
    }
}
