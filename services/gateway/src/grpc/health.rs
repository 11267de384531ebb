//! Updates `grpc.health.v1`. PostService and the whole server (the empty name) are SERVING while posts are accepted, the
//! other local services while the broker is connected, a forwarded service while its backend is SERVING, a role of the
//! process while its readiness checks pass, `liveness` always.

use std::time::Duration;

use futures::future::join_all;
use herald_mesh::Mesh;
use herald_proto::v1::post_service_server;
use herald_runtime::health::{Group, LIVENESS};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, server::NamedService as _, transport::Channel};
use tonic_health::{
    ServingStatus,
    pb::{
        HealthCheckRequest, health_check_response, health_client::HealthClient, health_server::HealthServer,
    },
    server::{HealthReporter, HealthService},
};

use super::routes::{OPERATORS, OPERATORS_FORWARDED, PUBLIC, PUBLIC_FORWARDED};
use crate::{
    adapters::{Analytics, Audits, DeadLetters, Forward, Graph, UserData},
    post_checks::PostChecks,
};

const INTERVAL: Duration = Duration::from_secs(1);
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// Reports the status of services at the ports that serve them.
#[derive(Default)]
pub(super) struct Reporters {
    public: HealthReporter,
    operators: HealthReporter,
}

impl Reporters {
    /// The health service of the public port.
    pub(super) fn public(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.public.clone()))
    }

    /// The health service of the operator port.
    pub(super) fn operators(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.operators.clone()))
    }

    /// Sets the status of a service; roles and the whole server are known at both ports.
    async fn set(&self, service: &str, status: ServingStatus) {
        let is_in = |lists: [&[&str]; 2]| lists.iter().any(|list| list.contains(&service));
        if !is_in([&OPERATORS, &OPERATORS_FORWARDED]) {
            self.public.set_service_status(service, status).await;
        }
        if !is_in([&PUBLIC, &PUBLIC_FORWARDED]) {
            self.operators.set_service_status(service, status).await;
        }
    }
}

/// Reports the status of all services.
pub(super) struct Health {
    pub(super) reporters: Reporters,
    pub(super) mesh: Mesh,
    pub(super) post_checks: PostChecks,
    /// The roles of the process.
    pub(super) roles: Vec<Group>,
    pub(super) graph: Channel,
    pub(super) analytics: Channel,
    pub(super) deadletter: Channel,
}

impl Health {
    /// Sets the initial status of every service. Forwarded services are NOT_SERVING until their backend has answered.
    pub(super) async fn set_initial(&self) {
        self.reporters.set(LIVENESS, ServingStatus::Serving).await;
        self.report_local().await;
        for service in PUBLIC_FORWARDED.iter().chain(&OPERATORS_FORWARDED) {
            self.reporters.set(service, ServingStatus::NotServing).await;
        }
    }

    /// Updates the statuses until the process is draining or the service stops, then sets all of them to NOT_SERVING.
    pub(super) async fn run(self, draining: CancellationToken, shutdown: CancellationToken) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reporting = async {
            loop {
                ticks.tick().await;
                self.report().await;
            }
        };
        tokio::select! {
            () = reporting => {}
            () = draining.cancelled() => {}
            () = shutdown.cancelled() => {}
        }
        for role in self.roles.iter().flat_map(|group| &group.names) {
            self.reporters.set(role, ServingStatus::NotServing).await;
        }
        let services = [
            &PUBLIC[..],
            &PUBLIC_FORWARDED,
            &OPERATORS,
            &OPERATORS_FORWARDED,
            &[""],
        ];
        for service in services.concat() {
            self.reporters.set(service, ServingStatus::NotServing).await;
        }
    }

    async fn report(&self) {
        let backends = [
            (Forward::<Graph>::NAME, &self.graph),
            (Forward::<Analytics>::NAME, &self.analytics),
            (Forward::<DeadLetters>::NAME, &self.deadletter),
            (Forward::<Audits>::NAME, &self.deadletter),
            (Forward::<UserData>::NAME, &self.deadletter),
        ];
        let forwarded = join_all(backends.map(async |(service, channel)| {
            let status = serving_if(is_serving(channel.clone(), service).await);
            self.reporters.set(service, status).await;
        }));
        futures::join!(self.report_local(), forwarded);
    }

    async fn report_local(&self) {
        self.post_checks.update().await;
        for group in &self.roles {
            let status = serving_if(group.readiness.failing().is_empty());
            for name in &group.names {
                self.reporters.set(name, status).await;
            }
        }
        let (connected, accepts_posts) = (self.mesh.is_connected(), self.post_checks.accepts_posts());
        for service in PUBLIC.iter().chain(&OPERATORS).chain([&""]) {
            let serving = match *service {
                "" | post_service_server::SERVICE_NAME => accepts_posts,
                _ => connected,
            };
            self.reporters.set(service, serving_if(serving)).await;
        }
    }
}

fn serving_if(serving: bool) -> ServingStatus {
    if serving {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    }
}

async fn is_serving(channel: Channel, service: &str) -> bool {
    let request = HealthCheckRequest {
        service: service.into(),
    };
    match timeout(CHECK_TIMEOUT, HealthClient::new(channel).check(request)).await {
        Ok(Ok(response)) => response.into_inner().status() == health_check_response::ServingStatus::Serving,
        // The backend is up but reports no health for this service.
        Ok(Err(status)) => matches!(status.code(), Code::Unimplemented | Code::NotFound),
        Err(_) => false,
    }
}
