//! The services of each port.

use std::time::Duration;

use herald_posts::PostReader;
use herald_proto::{
    API_DESCRIPTORS,
    v1::{
        delivery_service_server::{self, DeliveryServiceServer},
        device_service_server::{self, DeviceServiceServer},
        key_service_server::{self, KeyServiceServer},
        mesh_service_server::{self, MeshServiceServer},
        post_service_server::{self, PostServiceServer},
        preference_service_server::{self, PreferenceServiceServer},
        timeline_service_server::{self, TimelineServiceServer},
    },
};
use herald_runtime::shares::Shares;
use tokio_util::sync::CancellationToken;
use tonic::{server::NamedService, service::Routes};

use super::{
    delivery::DeliveryApi, device::DeviceApi, key::KeyApi, mesh::MeshApi, post::PostApi,
    preference::PreferenceApi, server::ServiceDeps, submit::Submitter, timeline::TimelineApi,
};
use crate::{
    Config, Error,
    adapters::{Analytics, Audits, DeadLetters, Forward, Forwarding, Graph, UserData},
    arrivals::Arrivals,
    feed::Feed,
    live::Hub,
    quota::PostQuota,
    rates::Rates,
};

/// Services that the public port serves and the gateway implements.
pub(super) const PUBLIC: [&str; 5] = [
    delivery_service_server::SERVICE_NAME,
    device_service_server::SERVICE_NAME,
    post_service_server::SERVICE_NAME,
    preference_service_server::SERVICE_NAME,
    timeline_service_server::SERVICE_NAME,
];
/// Services that the public port serves and other roles implement.
pub(super) const PUBLIC_FORWARDED: [&str; 2] = [Forward::<Graph>::NAME, Forward::<Analytics>::NAME];
/// Services that the operator port serves and the gateway implements.
pub(super) const OPERATORS: [&str; 2] = [
    key_service_server::SERVICE_NAME,
    mesh_service_server::SERVICE_NAME,
];
/// Services that the operator port serves and other roles implement.
pub(super) const OPERATORS_FORWARDED: [&str; 3] = [
    Forward::<DeadLetters>::NAME,
    Forward::<Audits>::NAME,
    Forward::<UserData>::NAME,
];

/// The services of each port.
pub(super) struct Ports {
    pub(super) public: Routes,
    pub(super) operators: Routes,
}

/// Builds the services. Health is not among them.
pub(super) fn routes(
    config: &Config,
    deps: ServiceDeps,
    shutdown: &CancellationToken,
) -> Result<Ports, Error> {
    let ServiceDeps {
        authenticator: _,
        keys,
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
        rpc_metrics: _,
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
        author_rates: Rates::new(config.limits.per_author()),
        quota: PostQuota::new(config.limits.posts_per_day_max, posts.clone()),
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
        arrivals: Arrivals::new(users.clone()),
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
    let public = Routes::new(PostServiceServer::new(posts_api).max_decoding_message_size(bytes_max))
        .add_service(TimelineServiceServer::new(timelines_api).max_decoding_message_size(bytes_max))
        .add_service(DeliveryServiceServer::new(deliveries).max_decoding_message_size(bytes_max))
        .add_service(DeviceServiceServer::new(devices_api).max_decoding_message_size(bytes_max))
        .add_service(PreferenceServiceServer::new(preferences_api).max_decoding_message_size(bytes_max))
        .add_service(Forward::<Graph>::new(graph, forwarding.clone()))
        .add_service(Forward::<Analytics>::new(analytics, forwarding.clone()));
    let operators = Routes::new(MeshServiceServer::new(lags).max_decoding_message_size(bytes_max))
        .add_service(KeyServiceServer::new(KeyApi::new(keys)).max_decoding_message_size(bytes_max))
        .add_service(Forward::<DeadLetters>::new(
            deadletter.clone(),
            forwarding.clone(),
        ))
        .add_service(Forward::<Audits>::new(deadletter.clone(), forwarding.clone()))
        .add_service(Forward::<UserData>::new(deadletter, forwarding));
    if !config.reflection {
        return Ok(Ports { public, operators });
    }
    Ok(Ports {
        public: with_reflection(public, PUBLIC.iter().chain(&PUBLIC_FORWARDED))?,
        operators: with_reflection(operators, OPERATORS.iter().chain(&OPERATORS_FORWARDED))?,
    })
}

/// Adds reflection, which lists these services and health.
fn with_reflection<'a>(routes: Routes, services: impl Iterator<Item = &'a &'a str>) -> Result<Routes, Error> {
    let services: Vec<&str> = services.copied().collect();
    herald_runtime::grpc::with_reflection(routes, API_DESCRIPTORS, &services).map_err(Error::Reflection)
}
