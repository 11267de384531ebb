//! The one public port.

use std::{sync::Arc, time::Duration};

use herald_mesh::{Mesh, Topology};
use herald_posts::PostReader;
use herald_proto::{
    API_DESCRIPTORS,
    v1::{
        delivery_service_server::{self, DeliveryServiceServer},
        device_service_server::{self, DeviceServiceServer},
        mesh_service_server::{self, MeshServiceServer},
        post_service_server::{self, PostServiceServer},
        preference_service_server::{self, PreferenceServiceServer},
        timeline_service_server::{self, TimelineServiceServer},
    },
};
use herald_recovery::StreamWatch;
use herald_runtime::{
    connections::{Limits, Port},
    grpc::{CONNECTION_WINDOW, STREAM_WINDOW},
    health::Group,
    route::Route,
    shares::Shares,
    shutdown,
    trace::ServerLayer,
};
use herald_store::{Devices, Ledger, Posts, Preferences, Timelines, Users};
use http::{HeaderName, HeaderValue, Method};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{server::NamedService, service::Routes, transport::Server};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::{
    admission::AdmissionLayer,
    delivery::DeliveryApi,
    device::DeviceApi,
    health::Health,
    mesh::MeshApi,
    message_size::MessageSizeLayer,
    post::PostApi,
    preference::PreferenceApi,
    submit::{Authors, Submitter},
    timeline::TimelineApi,
};
use crate::{
    Config, Error, Metrics, Vapid,
    adapters::{Analytics, Audits, DeadLetters, Forward, Forwarding, Graph},
    archive_watermark::ArchiveWatermark,
    feed::Feed,
    live::Hub,
    post_checks::PostChecks,
    request_history::RequestHistory,
};

const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for which a browser may cache the CORS preflight response.
const CORS_AGE_MAX: Duration = Duration::from_hours(24);

/// Dependencies of the gRPC services.
pub(crate) struct ServiceDeps {
    pub(crate) mesh: Mesh,
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
    pub(crate) metrics: Metrics,
}

/// Serves until the shutdown, then lets calls in flight finish for at most `drain_ms`.
pub(crate) async fn serve(
    config: &Config,
    deps: ServiceDeps,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let admission = AdmissionLayer::new(config, shutdown.clone(), deps.metrics.calls_shed.clone());
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let health = Health {
        reporter,
        mesh: deps.mesh.clone(),
        post_checks: deps.post_checks.clone(),
        roles: deps.roles.clone(),
        local: vec![
            delivery_service_server::SERVICE_NAME,
            device_service_server::SERVICE_NAME,
            mesh_service_server::SERVICE_NAME,
            post_service_server::SERVICE_NAME,
            preference_service_server::SERVICE_NAME,
            timeline_service_server::SERVICE_NAME,
        ],
        forwarded: vec![
            (Forward::<Graph>::NAME, deps.graph.own.clone()),
            (Forward::<Analytics>::NAME, deps.analytics.own.clone()),
            (Forward::<DeadLetters>::NAME, deps.deadletter.own.clone()),
            (Forward::<Audits>::NAME, deps.deadletter.own.clone()),
        ],
    };
    health.set_initial().await;
    let draining = deps.draining.clone();
    let counts = deps.metrics.port_counts();
    let routes = routes(config, deps, &shutdown)?.add_service(health_service);
    let answer_wait = Duration::from_millis(config.answer_wait_ms);
    let limits = Limits {
        connections_max: config.connections_max,
        write_wait: answer_wait,
        answer_wait,
        ..Limits::default()
    };
    let port = Port::new("gateway", limits, counts);
    let server = Server::builder()
        .accept_http1(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(config.streams_per_connection_max)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(cors(&config.cors_origins))
        .layer(tonic_web::GrpcWebLayer::new())
        .layer(ServerLayer)
        .layer(admission)
        .layer(MessageSizeLayer)
        .add_routes(routes.prepare())
        .serve_with_incoming_shutdown(port.incoming(listener), shutdown.clone().cancelled_owned());
    let server = port.watch_while(&shutdown, server);
    let drain = Duration::from_millis(config.drain_ms);
    let health = health.run(draining, shutdown.clone());
    let served = shutdown::drain_after(&shutdown, drain, async { futures::join!(server, health).0 });
    match Box::pin(served).await {
        Ok(served) => served.map_err(Error::Serve),
        Err(error) => {
            tracing::warn!(%error, "calls in flight were cut off after drain_ms");
            Ok(())
        }
    }
}

fn routes(config: &Config, deps: ServiceDeps, shutdown: &CancellationToken) -> Result<Routes, Error> {
    let ServiceDeps {
        mesh,
        topology,
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
        post_checks: _,
        roles: _,
        draining: _,
        metrics,
    } = deps;
    let reader = PostReader::new(users.clone(), posts.clone(), mesh.clone());
    let feed = Feed::new(timelines, preferences.clone(), reader.clone(), metrics.clone());
    let hub = Hub::new(
        mesh.clone(),
        metrics.clone(),
        config.watchers_max,
        config.watch_queue_max,
    );
    let submitter = Submitter {
        users: users.clone(),
        posts: posts.clone(),
        mesh: mesh.clone(),
        reader: reader.clone(),
        archive_watermark: archive_watermark.clone(),
        request_history,
        stream_watch,
        authors: Authors::default(),
        metrics,
    };
    let posts_api = PostApi {
        users: users.clone(),
        posts,
        submitter,
        reader: reader.clone(),
        archive_watermark,
        mesh: mesh.clone(),
        in_flight_max: config.submit_in_flight_max,
        delete_wait: Duration::from_millis(config.delete_wait_ms),
    };
    let timelines_api = TimelineApi {
        users: users.clone(),
        feed,
        hub,
        heartbeat: Duration::from_millis(config.heartbeat_ms),
        shutdown: shutdown.clone(),
    };
    let deliveries = DeliveryApi::new(users.clone(), ledger, reader);
    let devices_api = DeviceApi::new(users.clone(), devices, config.endpoints, vapid);
    let preferences_api = PreferenceApi::new(users, preferences, mesh.clone());
    let lags = MeshApi::new(mesh, topology, shutdown.clone());
    let bytes_max = config.request_bytes_max;
    let forwarding = Forwarding {
        streams: Shares::new(config.forwarded_streams_max),
        deadline_default: Duration::from_millis(config.forward_deadline_ms),
        shutdown: shutdown.clone(),
    };
    let routes = Routes::new(PostServiceServer::new(posts_api).max_decoding_message_size(bytes_max))
        .add_service(TimelineServiceServer::new(timelines_api).max_decoding_message_size(bytes_max))
        .add_service(DeliveryServiceServer::new(deliveries).max_decoding_message_size(bytes_max))
        .add_service(DeviceServiceServer::new(devices_api).max_decoding_message_size(bytes_max))
        .add_service(PreferenceServiceServer::new(preferences_api).max_decoding_message_size(bytes_max))
        .add_service(MeshServiceServer::new(lags).max_decoding_message_size(bytes_max))
        .add_service(Forward::<Graph>::new(graph, forwarding.clone()))
        .add_service(Forward::<Analytics>::new(analytics, forwarding.clone()))
        .add_service(Forward::<DeadLetters>::new(
            deadletter.clone(),
            forwarding.clone(),
        ))
        .add_service(Forward::<Audits>::new(deadletter, forwarding));
    herald_runtime::grpc::with_reflection(routes, API_DESCRIPTORS).map_err(Error::Reflection)
}

/// CORS rules for gRPC-Web: pages of the allowed origins may call and read the gRPC status headers.
fn cors(origins: &[String]) -> CorsLayer {
    const EXPOSED: [HeaderName; 3] = [
        HeaderName::from_static("grpc-status"),
        HeaderName::from_static("grpc-message"),
        HeaderName::from_static("grpc-status-details-bin"),
    ];
    let origins = if origins.iter().any(|origin| origin == "*") {
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
