//! Starts nats-server, the embedded store, the graph service and the fanout service.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use herald_fanout::{Config, Deps, Error, Metrics, run};
use herald_local_nats::Server;
use herald_mesh::{Mesh, Topology, TopologyConfig};
use herald_model::{FollowVersion, UserId, UserKey};
use herald_runtime::metrics::Shared;
use herald_store::{
    FollowChange, Ledger, Stores,
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
    shutdown: CancellationToken,
    pub(crate) service: JoinHandle<Result<(), Error>>,
    _store: Embedded,
    _data: TempDir,
    _server: Server,
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
        let topology = Arc::new(Topology::new(&TopologyConfig::default()).unwrap());
        mesh.ensure(&topology).await.unwrap();
        let store = Embedded::open(&embedded::Config {
            data_dir: data.path().join("store"),
            disk_free_mb_min: 0,
            ..embedded::Config::default()
        })
        .unwrap();
        let stores = store.stores();
        let shutdown = CancellationToken::new();
        let shared = Shared::new();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let graph = herald_graph::Deps {
            mesh: mesh.clone(),
            users: stores.users.clone(),
            follows: stores.follows.clone(),
            posts: stores.posts.clone(),
            listener,
            metrics: shared.register(herald_graph::Metrics::new),
        };
        tokio::spawn(herald_graph::run(
            herald_graph::Config::default(),
            graph,
            shutdown.clone(),
        ));
        let deps = Deps {
            mesh: mesh.clone(),
            topology,
            ledger: ledger(stores.ledger.clone()),
            graph: Endpoint::from_shared(format!("http://{address}"))
                .unwrap()
                .connect_lazy(),
            metrics: shared.register(Metrics::new),
        };
        Self {
            service: tokio::spawn(run(config, deps, shutdown.clone())),
            mesh,
            stores,
            shutdown,
            _store: store,
            _data: data,
            _server: server,
        }
    }

    /// Creates users and returns their keys.
    pub(crate) async fn users(&self, count: usize) -> Vec<UserKey> {
        let ids: Vec<UserId> = (0..count)
            .map(|n| UserId::new(format!("user {n}")).unwrap())
            .collect();
        self.stores.users.intern(&ids).await.unwrap()
    }

    /// Adds followers without notifications; returns the new follow version.
    pub(crate) async fn follow(&self, author: UserKey, followers: &[UserKey]) -> FollowVersion {
        let follows: Vec<FollowChange> = followers
            .iter()
            .map(|follower| FollowChange {
                follower: *follower,
                author,
                notify: Some(false),
            })
            .collect();
        self.stores.follows.apply(&follows).await.unwrap();
        self.stores.follows.count(author).await.unwrap().version
    }
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
