//! The ports: one for the public API, one for the calls of operators.
//!
//! Both share all limits: connections, calls in flight, and bytes in memory. Web pages can use the public port alone.

use std::{sync::Arc, time::Duration};

use herald_auth::Authenticator;
use herald_mesh::{Mesh, Topology};
use herald_recovery::StreamWatch;
use herald_runtime::{
    connections::{Limits, Port},
    grpc::{CONNECTION_WINDOW, STREAM_WINDOW},
    health::Group,
    route::Route,
    rpc_metrics::ServerMetrics,
    shutdown,
    trace::ServerLayer,
};
use herald_store::{Devices, Ledger, Posts, Preferences, Timelines, Users};
use http::{HeaderName, HeaderValue, Method};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::{
    admission::AdmissionLayer,
    authentication::AuthenticationLayer,
    health::{Health, Reporters},
    message_size::MessageSizeLayer,
    origin::{ANY, Origins},
    rate_limit::RateLimit,
    routes::{self, Ports},
    wrong_port::WrongPort,
};
use crate::{
    Config, Error, Listeners, Metrics, Vapid, archive_watermark::ArchiveWatermark, keys::Keys,
    post_checks::PostChecks, request_history::RequestHistory,
};

const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for which a browser may cache the CORS preflight response.
const CORS_AGE_MAX: Duration = Duration::from_hours(24);

/// Dependencies of the gRPC services.
pub(crate) struct ServiceDeps {
    pub(crate) mesh: Mesh,
    /// `None` if calls need no credential.
    pub(crate) authenticator: Option<Arc<Authenticator>>,
    pub(crate) keys: Keys,
    pub(crate) topology: Arc<Topology>,
    pub(crate) users: Arc<dyn Users>,
    pub(crate) posts: Arc<dyn Posts>,
    pub(crate) devices: Arc<dyn Devices>,
    pub(crate) preferences: Arc<dyn Preferences>,
    pub(crate) timelines: Arc<dyn Timelines>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) archive_watermark: ArchiveWatermark,
    pub(crate) request_history: RequestHistory,
    pub(crate) stream_watch: StreamWatch,
    pub(crate) graph: Route,
    pub(crate) analytics: Route,
    pub(crate) deadletter: Route,
    pub(crate) vapid: Vapid,
    pub(crate) post_checks: PostChecks,
    pub(crate) roles: Vec<Group>,
    pub(crate) draining: CancellationToken,
    pub(crate) rpc_metrics: ServerMetrics,
    pub(crate) metrics: Metrics,
}

/// Serves both ports until the shutdown, then lets calls in flight finish for at most `drain_ms`.
pub(crate) async fn serve(
    config: &Config,
    deps: ServiceDeps,
    listeners: Listeners,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let admission = AdmissionLayer::new(config, shutdown.clone(), deps.metrics.calls_shed.clone());
    let address_rates = RateLimit::of_addresses(config, deps.metrics.clone());
    let principal_rates = RateLimit::of_principals(config, deps.metrics.clone());
    let authentication = AuthenticationLayer::new(
        deps.authenticator.clone(),
        config.request_bytes_max,
        deps.metrics.calls_refused.clone(),
    );
    let reporters = Reporters::default();
    let (public_health, operator_health) = (reporters.public(), reporters.operators());
    let health = Health {
        reporters,
        mesh: deps.mesh.clone(),
        post_checks: deps.post_checks.clone(),
        roles: deps.roles.clone(),
        graph: deps.graph.own.clone(),
        analytics: deps.analytics.own.clone(),
        deadletter: deps.deadletter.own.clone(),
    };
    health.set_initial().await;
    let draining = deps.draining.clone();
    let counts = deps.metrics.port_counts();
    let rpc_metrics = deps.rpc_metrics.clone();
    let Ports { public, operators } = routes::routes(config, deps, &shutdown)?;
    let answer_wait = Duration::from_millis(config.answer_wait_ms);
    let limits = Limits {
        connections_max: config.connections_max,
        write_wait: answer_wait,
        answer_wait,
        ..Limits::default()
    };
    let port = Port::new("gateway", limits, counts);
    let (public_tls, operators_tls) = listeners.tls.map(|tls| (tls.public, tls.operators)).unzip();
    let public = builder(config)
        .accept_http1(true)
        .layer(Origins::allowing(&config.cors_origins))
        .layer(cors(&config.cors_origins))
        .layer(tonic_web::GrpcWebLayer::new())
        .layer(ServerLayer::new("gateway"))
        .layer(rpc_metrics.clone())
        .layer(address_rates.clone())
        .layer(admission.clone())
        .layer(MessageSizeLayer)
        .layer(WrongPort::PUBLIC)
        .layer(authentication.clone())
        .layer(principal_rates.clone())
        .add_routes(public.add_service(public_health).prepare())
        .serve_with_incoming_shutdown(
            port.incoming_tls(listeners.public, public_tls),
            shutdown.clone().cancelled_owned(),
        );
    let operators = builder(config)
        .layer(ServerLayer::new("gateway"))
        .layer(rpc_metrics)
        .layer(Origins::allowing_none())
        .layer(address_rates)
        .layer(admission)
        .layer(MessageSizeLayer)
        .layer(WrongPort::OPERATORS)
        .layer(authentication)
        .layer(principal_rates)
        .add_routes(operators.add_service(operator_health).prepare())
        .serve_with_incoming_shutdown(
            port.incoming_tls(listeners.operators, operators_tls),
            shutdown.clone().cancelled_owned(),
        );
    let servers = async { futures::try_join!(public, operators).map(|_| ()) };
    let servers = port.watch_while(&shutdown, servers);
    let drain = Duration::from_millis(config.drain_ms);
    let health = health.run(draining, shutdown.clone());
    let served = shutdown::drain_after(&shutdown, drain, async { futures::join!(servers, health).0 });
    match Box::pin(served).await {
        Ok(served) => served.map_err(Error::Serve),
        Err(error) => {
            tracing::warn!(%error, "calls in flight were cut off after drain_ms");
            Ok(())
        }
    }
}

/// What the servers of both ports have in common.
fn builder(config: &Config) -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(config.streams_per_connection_max)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

/// CORS rules for gRPC-Web: pages of the allowed origins may call and read the gRPC status headers.
fn cors(origins: &[String]) -> CorsLayer {
    const EXPOSED: [HeaderName; 3] = [
        HeaderName::from_static("grpc-status"),
        HeaderName::from_static("grpc-message"),
        HeaderName::from_static("grpc-status-details-bin"),
    ];
    let origins = if origins.iter().any(|origin| origin == ANY) {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(
            origins
                .iter()
                .filter_map(|origin| HeaderValue::from_str(origin).ok()),
        )
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(EXPOSED)
        .max_age(CORS_AGE_MAX)
}
