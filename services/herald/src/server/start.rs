//! Starts and stops the server.

use std::{io::ErrorKind, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use herald_mesh::{Mesh, Topology};
use herald_push::Vapid;
use herald_runtime::{
    http::{self, Readiness},
    metrics::Shared,
};
use herald_store::embedded::Embedded;
use tokio::{net::TcpListener, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use super::{
    Config,
    background::{Background, BackgroundRuntime},
    broker::{self, Broker},
    services::Services,
};

/// Limit for draining the services, each group.
const DRAIN_LIMIT: Duration = Duration::from_secs(45);
/// Limit for the gateway to become ready.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// Limit for the gateway to accept posts, after it serves calls.
const ACCEPTS_LIMIT: Duration = Duration::from_secs(2);
/// Interval at which the readiness of the gateway is polled.
const READY_INTERVAL: Duration = Duration::from_millis(5);

/// The addresses of a server.
#[derive(Debug, Clone)]
pub(crate) struct Addresses {
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) nats: String,
    pub(crate) nats_pid: Option<u32>,
}

/// A running server.
pub(crate) struct Server {
    pub(crate) addresses: Addresses,
    readiness: Readiness,
    broker: JoinHandle<Broker>,
    broker_shutdown: CancellationToken,
    store: Arc<Embedded>,
    /// The gateway; stops first, so that no more posts are accepted.
    gateway_services: Services,
    /// All other services.
    workers: Services,
    /// Runs the analytics and dead-letter services.
    _background: BackgroundRuntime,
}

/// The ports and the data directory of a server, claimed before anything else starts.
pub(crate) struct Claim {
    config: Config,
    grpc: TcpListener,
    http: TcpListener,
    store: Arc<Embedded>,
}

impl Claim {
    /// Binds the ports and opens the store. Fails if another process uses them.
    pub(crate) async fn new(config: Config) -> Result<Self> {
        // Ports first: a port in use is the most likely error, and nothing has changed yet.
        let grpc = listen(config.grpc, "gRPC", "--grpc").await?;
        let http = listen(config.http, "HTTP", "--http").await?;
        std::fs::create_dir_all(&config.data_dir)
            .with_context(|| format!("can't create the data directory {}", config.data_dir.display()))?;
        // The store's lock stops a second server before it touches the broker's files.
        let store = Embedded::open(&config.store).context("can't open the store")?;
        Ok(Self {
            config,
            grpc,
            http,
            store: Arc::new(store),
        })
    }
}

impl Server {
    /// Starts all parts. On return the server accepts calls; [`Server::readiness`] tells whether it accepts posts.
    pub(crate) async fn start(claim: Claim) -> Result<Self> {
        let Claim {
            config,
            grpc,
            http,
            store,
        } = claim;
        let broker = Broker::start(&config).await?;
        let addresses = Addresses {
            grpc: grpc.local_addr()?,
            http: http.local_addr()?,
            nats: broker.url(),
            nats_pid: broker.pid(),
        };
        let topology = Arc::new(Topology::new(&config.topology)?);
        let mesh_config = broker::mesh_config(&broker.url(), &config.topology);
        let mesh = Mesh::connect(&mesh_config)
            .await
            .context("can't connect to NATS")?;
        let background_runtime = BackgroundRuntime::start()?;
        let background = background_runtime.connect(mesh_config).await?;
        mesh.ensure(&topology)
            .await
            .context("can't create the streams and consumers")?;

        let parts = Parts {
            config,
            topology,
            mesh,
            background,
            store: store.clone(),
            metrics: Shared::new(),
        };
        let readiness = Readiness::new();
        let connected = [parts.mesh.clone(), parts.background.mesh.clone()];
        readiness.check("nats", move || {
            if connected.iter().all(Mesh::is_connected) {
                Ok(())
            } else {
                Err("the connection to NATS is down".into())
            }
        });
        let mut gateway_services = Services::new();
        let mut workers = Services::new();
        let graph = serve_graph(&parts, &mut workers).await?;
        let analytics = serve_analytics(&parts, &mut workers).await?;
        let deadletter = serve_deadletter(&parts, &mut workers).await?;
        let stores = parts.store.stores();
        let vapid = Vapid::open(&parts.config.push, &parts.config.data_dir, &*stores.devices)
            .await
            .context("can't start with this VAPID key")?;
        let gateway = herald_gateway::Deps {
            mesh: parts.mesh.clone(),
            topology: parts.topology.clone(),
            users: stores.users,
            posts: stores.posts,
            devices: stores.devices,
            preferences: stores.preferences,
            timelines: stores.timelines,
            ledger: stores.ledger,
            listener: grpc,
            graph: graph.clone(),
            analytics,
            deadletter,
            vapid: herald_gateway::Vapid {
                public_key: vapid.public_key_base64url(),
                has_subject: !parts.config.push.vapid_subject.is_empty(),
            },
            readiness: readiness.clone(),
            metrics: parts.metrics.register(herald_gateway::Metrics::new),
        };
        spawn_workers(&parts, &mut workers, graph, vapid);
        gateway_services.spawn(
            "gateway",
            herald_gateway::run(parts.config.gateway.clone(), gateway, gateway_services.shutdown()),
        );
        workers.spawn(
            "http",
            http::serve(http, parts.metrics.clone(), readiness.clone(), workers.shutdown()),
        );
        wait_until_serving(&readiness, &mut gateway_services, &mut workers).await?;

        let broker_shutdown = CancellationToken::new();
        let broker = tokio::spawn(broker.supervise(broker_shutdown.clone()));
        Ok(Self {
            addresses,
            readiness,
            broker,
            broker_shutdown,
            store,
            gateway_services,
            workers,
            _background: background_runtime,
        })
    }

    /// The readiness checks of `/readyz`.
    pub(crate) fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Runs until `shutdown` or until a service fails, then drains and stops all parts.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> Result<()> {
        let failure = tokio::select! {
            () = shutdown.cancelled() => None,
            error = self.gateway_services.failed() => Some(error),
            error = self.workers.failed() => Some(error),
        };
        let stopped = self.stop().await;
        match failure {
            // After a failure, draining may fail too; the first error is the cause.
            Some(error) => Err(error),
            None => stopped,
        }
    }

    async fn stop(self) -> Result<()> {
        let gateway_services = self.gateway_services.stop(DRAIN_LIMIT).await;
        let workers = self.workers.stop(DRAIN_LIMIT).await;
        let store = self.store.close().context("can't close the store");
        self.broker_shutdown.cancel();
        let broker = match self.broker.await {
            Ok(broker) => broker.stop().await,
            Err(error) => Err(anyhow::Error::new(error).context("the supervisor of nats-server panicked")),
        };
        gateway_services.and(workers).and(store).and(broker)
    }
}

/// The shared dependencies of the services.
struct Parts {
    config: Config,
    topology: Arc<Topology>,
    mesh: Mesh,
    background: Background,
    store: Arc<Embedded>,
    metrics: Shared,
}

async fn serve_graph(parts: &Parts, services: &mut Services) -> Result<Channel> {
    let (listener, channel) = bind_internal().await?;
    let stores = parts.store.stores();
    let deps = herald_graph::Deps {
        mesh: parts.mesh.clone(),
        users: stores.users,
        follows: stores.follows,
        posts: stores.posts,
        listener,
        metrics: parts.metrics.register(herald_graph::Metrics::new),
    };
    services.spawn(
        "graph",
        herald_graph::run(parts.config.graph.clone(), deps, services.shutdown()),
    );
    Ok(channel)
}

async fn serve_analytics(parts: &Parts, services: &mut Services) -> Result<Channel> {
    let (listener, channel) = bind_internal().await?;
    let deps = herald_analytics::Deps {
        mesh: parts.background.mesh.clone(),
        topology: parts.topology.clone(),
        totals: parts.store.stores().totals,
        leases: parts.store.stores().leases,
        users: parts.store.stores().users,
        objects: None,
        listener,
        metrics: parts.metrics.register(herald_analytics::Metrics::new),
    };
    services.spawn_on(
        &parts.background.runtime,
        "analytics",
        herald_analytics::run(parts.config.analytics.clone(), deps, services.shutdown()),
    );
    Ok(channel)
}

async fn serve_deadletter(parts: &Parts, services: &mut Services) -> Result<Channel> {
    let (listener, channel) = bind_internal().await?;
    let stores = parts.store.stores();
    let auditor = herald_audit::Auditor {
        mesh: parts.background.mesh.clone(),
        topology: parts.topology.clone(),
        users: stores.users.clone(),
        posts: stores.posts,
        timelines: stores.timelines,
        ledger: stores.ledger.clone(),
        totals: stores.totals,
        dead_letters: stores.dead_letters.clone(),
        limits: herald_audit::Limits {
            timeline_entries_max: parts.config.store.timelines.entries_max,
            timeline_age_max: Duration::from_hours(
                24 * parts
                    .config
                    .store
                    .timeline_keep_days
                    .min(parts.config.store.ledger_keep_days),
            ),
            ..herald_audit::Limits::default()
        },
    };
    let deps = herald_deadletter::Deps {
        mesh: parts.background.mesh.clone(),
        topology: parts.topology.clone(),
        users: stores.users,
        ledger: stores.ledger,
        dead_letters: stores.dead_letters,
        leases: stores.leases,
        retention: stores.retention,
        auditor,
        listener,
        metrics: parts.metrics.register(herald_deadletter::Metrics::new),
    };
    services.spawn_on(
        &parts.background.runtime,
        "deadletter",
        herald_deadletter::run(parts.config.deadletter.clone(), deps, services.shutdown()),
    );
    Ok(channel)
}

/// Spawns the services that consume messages: fanout, timeline, push.
fn spawn_workers(parts: &Parts, services: &mut Services, graph: Channel, vapid: Vapid) {
    let stores = parts.store.stores();
    let fanout = herald_fanout::Deps {
        mesh: parts.mesh.clone(),
        topology: parts.topology.clone(),
        ledger: stores.ledger.clone(),
        graph,
        metrics: parts.metrics.register(herald_fanout::Metrics::new),
    };
    services.spawn(
        "fanout",
        herald_fanout::run(parts.config.fanout.clone(), fanout, services.shutdown()),
    );
    let timeline = herald_timeline::Deps {
        mesh: parts.mesh.clone(),
        topology: parts.topology.clone(),
        timelines: stores.timelines,
        ledger: stores.ledger.clone(),
        posts: stores.posts.clone(),
        metrics: parts.metrics.register(herald_timeline::Metrics::new),
    };
    services.spawn(
        "timeline",
        herald_timeline::run(parts.config.timeline.clone(), timeline, services.shutdown()),
    );
    let push = herald_push::Deps {
        mesh: parts.mesh.clone(),
        topology: parts.topology.clone(),
        users: stores.users,
        devices: stores.devices,
        preferences: stores.preferences,
        posts: stores.posts,
        ledger: stores.ledger,
        vapid,
        metrics: parts.metrics.register(herald_push::Metrics::new),
    };
    services.spawn(
        "push",
        herald_push::run(parts.config.push.clone(), push, services.shutdown()),
    );
}

/// Binds a loopback listener for an internal service, and creates the channel to it.
async fn bind_internal() -> Result<(TcpListener, Channel)> {
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))
        .await
        .context("can't bind a free loopback port")?;
    let address = listener.local_addr()?;
    let channel = Endpoint::from_shared(format!("http://{address}"))?
        .tcp_nodelay(true)
        .connect_lazy();
    Ok((listener, channel))
}

async fn listen(address: SocketAddr, name: &str, flag: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        if error.kind() == ErrorKind::AddrInUse {
            anyhow!(
                "port {}, the {name} port, is in use by another process (is Herald running already?): set another \
                 address with {flag} (port 0 picks a free port)",
                address.port()
            )
        } else {
            anyhow!("can't listen on {address}: {error}; set another address with {flag}")
        }
    })
}

/// Waits until the gateway serves calls; fails if a service fails, or after [`READY_LIMIT`]. Then waits for at most
/// [`ACCEPTS_LIMIT`] until posts are accepted: the first reading of the archive takes some milliseconds.
async fn wait_until_serving(
    readiness: &Readiness,
    gateway_services: &mut Services,
    workers: &mut Services,
) -> Result<()> {
    let serving = until(|| {
        let states = readiness.states();
        states
            .iter()
            .any(|state| state.name == herald_gateway::READY_CHECK && state.ready)
    });
    tokio::select! {
        waited = timeout(READY_LIMIT, serving) => waited.context("the gateway did not become ready in time")?,
        error = gateway_services.failed() => return Err(error),
        error = workers.failed() => return Err(error),
    }
    // The caller reports which checks fail.
    let _ = timeout(ACCEPTS_LIMIT, until(|| readiness.failing().is_empty())).await;
    Ok(())
}

/// Waits until a condition holds.
async fn until(condition: impl Fn() -> bool) {
    let mut ticks = tokio::time::interval(READY_INTERVAL);
    while !condition() {
        ticks.tick().await;
    }
}
