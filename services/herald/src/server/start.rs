//! Starts and stops the server.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use herald_gateway::Listeners;
use herald_mesh::{Mesh, Topology, TopologyMode};
use herald_model::time::Timestamp;
use herald_runtime::{
    grpc::{Listener, SharedPort},
    health,
    http::{self, Readiness},
    in_process,
    metrics::Shared,
    rpc_metrics::ServerMetrics,
    telemetry,
};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Config,
    about::About,
    background::BackgroundRuntime,
    broker::Broker,
    checks::Checks,
    claim::Claim,
    connections::{Connections, connect},
    control::{self, Control},
    engine::Engine,
    peers::Channels,
    process_file::{Announced, reachable},
    roles::{Role, Roles},
    services::Services,
    spawn::Parts,
    tls,
    topology_wait::TopologyWait,
    vapid,
};

/// Limit for the gateway to become ready.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// Limit for the process to become ready, after it serves calls.
const ACCEPTS_LIMIT: Duration = Duration::from_secs(2);
/// Interval at which readiness is polled.
const READY_INTERVAL: Duration = Duration::from_millis(5);
/// Limit for closing the store, which is after the drain limit.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// The addresses of a server.
#[derive(Debug, Clone)]
pub(crate) struct Addresses {
    pub(crate) grpc: SocketAddr,
    /// Of operators' calls, if the process has the gateway.
    pub(crate) operator_grpc: Option<SocketAddr>,
    /// Of the internal services, if they have a port for other processes beside the gateway's.
    pub(crate) internal_grpc: Option<SocketAddr>,
    pub(crate) http: SocketAddr,
    /// Without credentials.
    pub(crate) nats: String,
    pub(crate) nats_pid: Option<u32>,
}

/// A running server.
pub(crate) struct Server {
    pub(crate) addresses: Addresses,
    checks: Checks,
    broker: JoinHandle<Broker>,
    broker_shutdown: CancellationToken,
    engine: Engine,
    connections: Connections,
    /// The gateway; stops first, so that no more posts are accepted.
    gateway_services: Services,
    /// All other services.
    workers: Services,
    /// The port of `/readyz`; stops last.
    http_services: Services,
    /// Unless processes share the store.
    _announced: Option<Announced>,
    shutdown_limit: Duration,
    /// Time between the end of readiness and the stop of the services.
    shutdown_delay: Duration,
    /// Runs the analytics and dead-letter services.
    _background: Option<BackgroundRuntime>,
}

impl Server {
    /// Starts all parts. On return the server accepts calls; [`Server::readiness`] tells whether it accepts posts.
    pub(crate) async fn start(claim: Claim) -> Result<Self> {
        let Claim {
            mut config,
            roles,
            shared,
            grpc,
            operator_grpc,
            internal_grpc,
            http,
            engine,
        } = claim;
        config.warn_of_plain_text(&roles);
        let broker = Broker::start(&config).await?;
        let addresses = Addresses {
            grpc: grpc.local_addr()?,
            operator_grpc: operator_grpc.as_ref().map(TcpListener::local_addr).transpose()?,
            internal_grpc: internal_grpc.as_ref().map(TcpListener::local_addr).transpose()?,
            http: http.local_addr()?,
            nats: broker.public_url(),
            nats_pid: broker.pid(),
        };
        let announced = (!shared).then(|| Announced::new(&config.data_dir, addresses.http));
        let shutdown_limit = config.shutdown_limit();
        let topology = Arc::new(topology_that_drains(&config)?);
        config.gateway.drain_ms = config
            .gateway
            .drain_ms
            .min(drain_share(shutdown_limit).as_millis() as u64);
        let metrics = Shared::new();
        let mesh_metrics = metrics.register(herald_mesh::Metrics::new);
        let broker_hops = config.telemetry.broker_hops && telemetry::endpoint(&config.telemetry).is_some();
        let (mesh, background) = connect(&config, &roles, &broker, mesh_metrics).await?;
        let mesh = mesh.with_broker_hops(broker_hops);
        let (background_runtime, mut background) = background.unzip();
        if let Some(background) = &mut background {
            background.mesh = background.mesh.with_broker_hops(broker_hops);
        }
        let mut connections = Connections(vec![mesh.clone()]);
        let of_background = background.as_ref().map(|background| background.mesh.clone());
        connections.0.extend(of_background);
        let checks = Checks::new(&roles, &connections.0);
        register_process(&metrics, &config, &roles, &checks);
        let mut http_services = Services::new();
        let mut http = Some((http, About::new(&config, &roles)));
        let mut waited = None;
        match config.nats.topology {
            // The scaler alone reads what others make.
            TopologyMode::Apply if !roles.use_store() => {}
            TopologyMode::Apply => {
                report_missing(&engine, &mesh, &topology).await;
                let last_dead_letter = last_dead_letter(&engine).await?;
                let topology = (*topology).clone().beginning(Timestamp::now(), last_dead_letter);
                mesh.ensure(&topology)
                    .await
                    .context("can't create the streams and consumers")?;
            }
            TopologyMode::Verify => {
                let used = topology.used_by(&roles.nats_users());
                let wait = TopologyWait::start(&checks, &grpc, tls::of_grpc(&config, &roles)?).await?;
                spawn_http(&mut http_services, &mut http, &metrics, &checks);
                wait.until_there(&mesh, &used).await;
                waited = Some(wait);
            }
        }
        let store_metrics = metrics.register(|registry| engine.register_metrics(registry));
        let stores = engine.stores().map(|stores| stores.observed(&store_metrics));
        if let Some(stores) = stores.as_ref().filter(|_| config.store.is_cluster()) {
            checks.watch_store(stores.health.clone());
        }
        let control = if matches!(engine, Engine::Embedded(_)) {
            control::bind(&config.data_dir)
        } else {
            None
        };
        let shutdown_delay = shutdown_delay(&config, &roles, shared);
        let parts = Parts {
            config,
            shared,
            topology,
            mesh,
            background,
            stores,
            rpc_metrics: metrics
                .register(|registry| ServerMetrics::new(registry, herald_proto::all_methods())),
            metrics,
            checks: checks.clone(),
        };
        let mut gateway_services = Services::new();
        let mut workers = Services::new();
        let opening = engine.finish_opening(workers.shutdown());
        let is_open = opening.is_none();
        if let Some(opening) = opening {
            workers.spawn("store", opening);
        }
        if let Some(watching) = engine.watch(workers.shutdown()) {
            workers.spawn("store", watching);
        }
        if broker_hops && roles.has(Role::Gateway) {
            let (mesh, stop) = (parts.mesh.clone(), workers.shutdown());
            workers.spawn("broker-hops", async move { mesh.run_broker_hops(stop).await });
        }
        if let Some(listener) = control {
            let control = Control {
                mesh: parts.mesh.clone(),
                topology: parts.topology.clone(),
                engine: engine.clone(),
                data_dir: parts.config.data_dir.clone(),
                turn: Arc::new(Semaphore::new(1)),
            };
            workers.spawn("control", control.serve(listener, workers.shutdown()));
        }
        let ports = Ports {
            grpc,
            operator_grpc,
            internal_grpc,
        };
        Box::pin(spawn_all(
            &parts,
            &roles,
            ports,
            is_open,
            &mut gateway_services,
            &mut workers,
        ))
        .await?;
        if let Some(wait) = waited {
            wait.end();
        }
        spawn_http(&mut http_services, &mut http, &parts.metrics, &checks);
        wait_until_serving(&checks, &roles, &mut gateway_services, &mut workers).await?;

        let broker_shutdown = CancellationToken::new();
        let broker = tokio::spawn(broker.supervise(broker_shutdown.clone()));
        Ok(Self {
            addresses,
            checks,
            broker,
            broker_shutdown,
            engine,
            connections,
            gateway_services,
            workers,
            http_services,
            _announced: announced,
            shutdown_limit,
            shutdown_delay,
            _background: background_runtime,
        })
    }

    /// The readiness checks of `/readyz`.
    pub(crate) fn readiness(&self) -> Readiness {
        self.checks.process.clone()
    }

    /// Runs until `shutdown` or until a service fails, then drains and stops all parts.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> Result<()> {
        let failure = tokio::select! {
            () = shutdown.cancelled() => None,
            error = self.gateway_services.failed() => Some(error),
            error = self.workers.failed() => Some(error),
            error = self.http_services.failed() => Some(error),
        };
        let stopped = self.stop(failure.is_none()).await;
        match failure {
            // After a failure, draining may fail too; the first error is the cause.
            Some(error) => Err(error),
            None => stopped,
        }
    }

    /// Stops everything within the limit. The process stops being ready at once; with `delay`, other processes have time
    /// to notice that before the services stop.
    async fn stop(self, delay: bool) -> Result<()> {
        let started = tokio::time::Instant::now();
        self.checks.draining.cancel();
        if delay && !self.shutdown_delay.is_zero() {
            tokio::time::sleep(self.shutdown_delay).await;
        }
        let left = || self.shutdown_limit.saturating_sub(started.elapsed());
        let gateway_services = self.gateway_services.stop(left()).await;
        let workers = self.workers.stop(left()).await;
        let http = self.http_services.stop(left().max(Duration::from_secs(1))).await;
        let store = timeout(CLOSE_LIMIT, self.engine.close()).await;
        let store = store.unwrap_or_else(|_| Err(anyhow!("the store did not close in time")));
        self.connections.expect_end();
        self.broker_shutdown.cancel();
        let broker = match self.broker.await {
            Ok(broker) => broker.stop().await,
            Err(error) => Err(anyhow::Error::new(error).context("the supervisor of nats-server panicked")),
        };
        let stopped = gateway_services.and(workers).and(http).and(store).and(broker);
        if stopped.is_ok() {
            tracing::info!(
                milliseconds = started.elapsed().as_millis() as u64,
                "stopped: all work in flight is done or returned to the streams"
            );
        }
        stopped
    }
}

/// Registers the metrics of the process itself.
fn register_process(metrics: &Shared, config: &Config, roles: &Roles, checks: &Checks) {
    let mut dirs = Vec::new();
    if roles.use_store() && !config.store.is_cluster() {
        dirs.push(("data", config.data_dir.clone()));
    }
    if config.nats.is_child() {
        dirs.push(("broker", config.data_dir.join("nats")));
    }
    if roles.has(Role::Analytics) {
        dirs.push(("analytics", config.analytics.dir.clone()));
    }
    metrics.register(|registry| {
        herald_runtime::metrics::register_build(registry, env!("CARGO_PKG_VERSION"));
        herald_runtime::metrics::register_process(registry);
        herald_runtime::metrics::register_disk(registry, dirs);
        herald_runtime::ready_metrics::register_ready(registry, checks.process.clone());
    });
}

/// The gRPC ports of a process.
struct Ports {
    /// The gateway's, or that of the internal services of a process without the gateway.
    grpc: TcpListener,
    /// That of operators' calls, of a process with the gateway.
    operator_grpc: Option<TcpListener>,
    /// That of the internal services of a process with the gateway.
    internal_grpc: Option<TcpListener>,
}

/// Logs which streams are missing that were seen before: they are made now, and what they held is lost.
async fn report_missing(engine: &Engine, mesh: &Mesh, topology: &Arc<Topology>) {
    let Some(stores) = engine.stores() else { return };
    let checker = control::checker(mesh, topology, stores);
    if let Err(error) = checker.report_missing().await {
        tracing::debug!(%error, "can't tell which streams are missing");
    }
}

/// The greatest known id of a dead letter, after which DLQ begins if it doesn't exist. 0 while the store is away: a gateway
/// that starts without it compares DLQ with the store later.
async fn last_dead_letter(engine: &Engine) -> Result<u64> {
    let Some(stores) = engine.stores() else {
        return Ok(0);
    };
    match herald_recovery::last_dead_letter(&*stores.dead_letters, &*stores.stream_marks).await {
        Err(error) if error.is_away() => Ok(0),
        read => read.context("can't read the dead letters"),
    }
}

/// Spawns the services of all roles. `is_open`: whether the store is open.
async fn spawn_all(
    parts: &Parts,
    roles: &Roles,
    ports: Ports,
    is_open: bool,
    gateway_services: &mut Services,
    workers: &mut Services,
) -> Result<()> {
    let (gateway, internal) = match ports.operator_grpc {
        Some(operators) => {
            let listeners = Listeners {
                public: ports.grpc,
                operators,
                tls: tls::gateway(&parts.config)?,
            };
            (Some(listeners), ports.internal_grpc)
        }
        None => (None, Some(ports.grpc)),
    };
    let internal_tls = tls::Internal::open(&parts.config)?;
    tls::register_metrics(&parts.metrics, gateway.as_ref(), internal_tls.as_ref());
    let mut shared = match internal {
        Some(listener) => Some((
            reachable(listener.local_addr()?),
            SharedPort::new(listener, parts.rpc_metrics.clone(), workers.shutdown())
                .with_tls(internal_tls.as_ref().map(|tls| tls.server.clone())),
        )),
        None => None,
    };
    let mut channels = Channels::default();
    for role in roles.iter().filter(|role| !role.internal_services().is_empty()) {
        let listener = if let Some((address, port)) = &mut shared {
            channels.add_local(role, *address, internal_tls.as_ref())?;
            port.mount()
        } else {
            let (connector, acceptor) = in_process::pair();
            channels.add_in_process(role, connector);
            Listener::in_process(acceptor, parts.rpc_metrics.clone())
        };
        parts.spawn_internal(role, workers, listener)?;
    }
    channels.add_peers(&parts.config, roles, &parts.checks, &workers.shutdown())?;
    if let Some((_, port)) = shared {
        let health = health::routes(parts.checks.groups(), parts.checks.draining.clone()).await;
        workers.spawn("grpc", port.serve(health));
    }
    if roles.has(Role::Archive) {
        parts.spawn_archive(workers)?;
    }
    if roles.has(Role::Fanout) {
        parts.spawn_fanout(workers, &channels)?;
    }
    if roles.has(Role::Timeline) {
        parts.spawn_timeline(workers)?;
    }
    let mut vapid_public_key = None;
    if roles.has(Role::Push) {
        let vapid = vapid::open(parts).await?;
        vapid_public_key = Some(vapid.public_key_base64url());
        parts.spawn_push(workers, vapid)?;
    }
    if let Some(listeners) = gateway {
        let key = vapid::public_key(parts, vapid_public_key, is_open, workers).await?;
        parts.spawn_gateway(gateway_services, listeners, &channels, key)?;
    }
    Ok(())
}

/// Spawns the service of `/readyz`, `/metrics` and `/about`, unless it runs already.
fn spawn_http(
    services: &mut Services,
    listener: &mut Option<(TcpListener, About)>,
    metrics: &Shared,
    checks: &Checks,
) {
    if let Some((listener, about)) = listener.take() {
        let routes = http::routes(metrics.clone(), checks.process.clone()).merge(about.route());
        let serving = http::serve_routes(listener, routes, services.shutdown());
        services.spawn("http", serving);
    }
}

/// Time between the end of readiness and the stop of the services: only a process that others call waits.
fn shutdown_delay(config: &Config, roles: &Roles, shared: bool) -> Duration {
    if shared && roles.are_called() {
        Duration::from_secs(config.shutdown_delay_seconds)
    } else {
        Duration::ZERO
    }
}

/// The time of the shutdown that each group of services has to finish its work.
fn drain_share(limit: Duration) -> Duration {
    limit.mul_f64(0.4).max(Duration::from_secs(1))
}

/// The topology whose consumers drain within the shutdown limit.
fn topology_that_drains(config: &Config) -> Result<Topology> {
    let mut topology = Topology::new(&config.topology)?;
    for consumer in &mut topology.consumers {
        consumer.drain = consumer.drain.min(drain_share(config.shutdown_limit()));
    }
    Ok(topology)
}

/// Waits until the gateway serves calls; fails if a service fails, or after [`READY_LIMIT`]. Then waits for at most
/// [`ACCEPTS_LIMIT`] until the process is ready: the first reading of the archive takes some milliseconds.
async fn wait_until_serving(
    checks: &Checks,
    roles: &Roles,
    gateway_services: &mut Services,
    workers: &mut Services,
) -> Result<()> {
    let serving = until(|| {
        let states = checks.process.states();
        !roles.has(Role::Gateway)
            || states
                .iter()
                .any(|state| state.name == herald_gateway::READY_CHECK && state.ready)
    });
    let ready = async {
        timeout(READY_LIMIT, serving)
            .await
            .context("the gateway did not become ready in time")?;
        // The caller reports which checks fail.
        let _ = timeout(ACCEPTS_LIMIT, until(|| checks.process.failing().is_empty())).await;
        Ok(())
    };
    tokio::select! {
        waited = ready => waited,
        error = gateway_services.failed() => Err(error),
        error = workers.failed() => Err(error),
    }
}

/// Waits until a condition holds.
async fn until(condition: impl Fn() -> bool) {
    let mut ticks = tokio::time::interval(READY_INTERVAL);
    while !condition() {
        ticks.tick().await;
    }
}
