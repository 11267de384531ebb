//! The gateway: the public port, and that of operators.
//!
//! It accepts posts into the POSTS stream, serves timelines, stores devices and preferences, reports the status of
//! deliveries, and forwards calls to the graph, analytics and deadletter services.
//!
//! Steps of a post: [`grpc`] validates it, finds or assigns the key of its author, looks for an earlier post with the
//! same request id, and publishes. The broker's acknowledgement makes the post durable, and then the caller is answered.
//! The archive service writes the post to the store; until then the post is read from the stream.
//!
//! Accepting a post needs the broker alone. While the store is away, also from the start, the key of an author who is not
//! cached is left to the readers of the post.

mod adapters;
mod archive_watermark;
mod arrivals;
mod config;
mod day_start;
mod domain;
mod error;
mod feed;
mod grpc;
mod keys;
mod live;
mod metrics;
mod post_checks;
mod quota;
mod rates;
mod recent_request;
mod request_history;
mod response;
mod wire;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::future::BoxFuture;
use herald_auth::Authenticator;
use herald_mesh::{Mesh, Topology};
use herald_recovery::{Checker, StreamWatch};
use herald_runtime::{
    health::Group, http::Readiness, route::Route, rpc_metrics::ServerMetrics, tls::ServerTls,
};
use herald_store::{
    ApiKeys, DeadLetters, Devices, Ledger, Posts, Preferences, StreamMarks, Timelines, Users,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::{Config, RateLimits};
pub use error::Error;
pub use metrics::Metrics;

use crate::{
    archive_watermark::WatermarkReader, keys::Keys, post_checks::PostChecks, request_history::RequestHistory,
};

/// Name of the readiness check that passes while the ports accept calls.
pub const READY_CHECK: &str = "gateway";

/// Dependencies of the service.
pub struct Deps {
    /// Who may call.
    pub auth: herald_auth::Config,
    /// Metrics of authentication.
    pub auth_metrics: herald_auth::Metrics,
    /// API keys.
    pub api_keys: Arc<dyn ApiKeys>,
    /// Connection to the broker. Streams and consumers of `topology` exist.
    pub mesh: Mesh,
    /// Streams and consumers.
    pub topology: Arc<Topology>,
    /// User ids and their keys.
    pub users: Arc<dyn Users>,
    /// Posts and request ids.
    pub posts: Arc<dyn Posts>,
    /// Devices of users.
    pub devices: Arc<dyn Devices>,
    /// Push settings and muted authors of users.
    pub preferences: Arc<dyn Preferences>,
    /// Timelines of users.
    pub timelines: Arc<dyn Timelines>,
    /// State of each delivery.
    pub ledger: Arc<dyn Ledger>,
    /// Explain posts that were not archived.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// What was seen of each stream.
    pub stream_marks: Arc<dyn StreamMarks>,
    /// The ports.
    pub listeners: Listeners,
    /// The ways to call the graph service.
    pub graph: Route,
    /// The ways to call the analytics service.
    pub analytics: Route,
    /// The ways to call the deadletter service.
    pub deadletter: Route,
    /// VAPID identification of the push service.
    pub vapid: Vapid,
    /// Receives the gateway's readiness checks: whether the ports accept calls, and whether posts are accepted.
    pub readiness: Readiness,
    /// Further names of `grpc.health.v1`: the roles of the process.
    pub roles: Vec<Group>,
    /// Cancelled at the begin of the process's shutdown, before `shutdown`: from then on the health is NOT_SERVING.
    pub draining: CancellationToken,
    /// Metrics of the calls.
    pub rpc_metrics: ServerMetrics,
    /// Metrics of the service.
    pub metrics: Metrics,
}

/// The listeners of the ports.
#[derive(Debug)]
pub struct Listeners {
    /// Of the public API: gRPC and gRPC-Web.
    pub public: TcpListener,
    /// Of operators: dead letters, audits, and the state of the mesh. gRPC alone.
    pub operators: TcpListener,
    /// TLS of the ports; `None`: plain text.
    pub tls: Option<PortsTls>,
}

/// TLS of each port.
#[derive(Debug)]
pub struct PortsTls {
    /// Of the public API, with HTTP/1.1 for gRPC-Web.
    pub public: ServerTls,
    /// Of operators.
    pub operators: ServerTls,
}

/// What the gateway knows of the push service's VAPID identification (RFC 8292).
#[derive(Debug, Clone)]
pub struct Vapid {
    /// The public key, base64url; part of the ListDevices response. Empty until a process that started without the store
    /// knows it.
    pub public_key: Arc<OnceLock<String>>,
    /// Whether pushes carry a contact of the operator. Some push services require it.
    pub has_subject: bool,
}

/// Serves until `shutdown`, then ends watches and finishes the calls in flight.
pub fn run(config: Config, deps: Deps, shutdown: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // A boxed future is compiled in this crate; an `async fn` would be compiled again in every crate that calls it.
    Box::pin(serve(config, deps, shutdown))
}

async fn serve(config: Config, deps: Deps, shutdown: CancellationToken) -> Result<(), Error> {
    config.validate().map_err(Error::Config)?;
    let Deps {
        auth,
        auth_metrics,
        api_keys,
        mesh,
        topology,
        users,
        posts,
        devices,
        preferences,
        timelines,
        ledger,
        dead_letters,
        stream_marks,
        listeners,
        graph,
        analytics,
        deadletter,
        vapid,
        readiness,
        roles,
        draining,
        rpc_metrics,
        metrics,
    } = deps;
    let authenticator = if auth.enabled {
        Some(Arc::new(Authenticator::new(&auth, auth_metrics.clone())?))
    } else {
        None
    };
    let keys = Keys::new(api_keys, authenticator.clone(), auth_metrics);
    keys.read_first().await;
    let ready = readiness.flag(READY_CHECK);
    let checker = Checker {
        mesh: mesh.clone(),
        topology: topology.clone(),
        posts: posts.clone(),
        dead_letters,
        stream_marks,
    };
    let stream_watch = StreamWatch::start(checker).await??;

    let watermark_reader = WatermarkReader::new(mesh.clone(), users.clone(), posts.clone(), &topology);
    let archive_watermark = watermark_reader.archive_watermark();
    // Stopped after the last call has ended: DeletePost waits for a fresh watermark.
    let reading_stop = CancellationToken::new();
    let _reading = reading_stop.clone().drop_guard();
    tokio::spawn(
        reading_stop
            .clone()
            .run_until_cancelled_owned(watermark_reader.run()),
    );

    let request_history = RequestHistory::new(
        mesh.clone(),
        Duration::from_secs(config.request_keep_hours * 60 * 60),
        archive_watermark.age_max(),
    );
    tokio::spawn(
        reading_stop
            .clone()
            .run_until_cancelled_owned(request_history.clone().run()),
    );
    tokio::spawn(reading_stop.clone().run_until_cancelled_owned(keys.clone().run()));
    tokio::spawn(reading_stop.run_until_cancelled_owned(stream_watch.clone().run()));

    let post_checks = PostChecks::new(
        mesh.clone(),
        posts.clone(),
        archive_watermark.clone(),
        request_history.clone(),
        stream_watch.clone(),
        &readiness,
    );
    // Before the gateway is ready: until a check has run, it finds nothing wrong.
    post_checks.update().await;

    let service_deps = grpc::ServiceDeps {
        authenticator,
        keys,
        mesh: mesh.clone(),
        topology: topology.clone(),
        users,
        posts,
        devices,
        preferences,
        timelines,
        ledger,
        archive_watermark,
        request_history,
        stream_watch,
        graph,
        analytics,
        deadletter,
        vapid,
        post_checks,
        roles,
        draining,
        rpc_metrics,
        metrics,
    };
    ready.set(true);
    let served = grpc::serve(&config, service_deps, listeners, shutdown).await;
    ready.set(false);
    served
}
