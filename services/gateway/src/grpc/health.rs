//! Keeps `grpc.health.v1` true: own services serve while the broker is there, forwarded ones while theirs are.

use std::time::Duration;

use futures::future::join_all;
use herald_mesh::Mesh;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, transport::Channel};
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_check_response, health_client::HealthClient},
    server::HealthReporter,
};

const INTERVAL: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// What to report on.
pub(super) struct Health {
    pub(super) reporter: HealthReporter,
    pub(super) mesh: Mesh,
    /// Services answered here.
    pub(super) own: Vec<&'static str>,
    /// Services answered elsewhere.
    pub(super) forwarded: Vec<(&'static str, Channel)>,
}

impl Health {
    /// Tells a first status of every service, before anybody can ask. Those behind count as down until they answered.
    pub(super) async fn start(&self) {
        self.report_own().await;
        for (service, _) in &self.forwarded {
            self.reporter
                .set_service_status(service, ServingStatus::NotServing)
                .await;
        }
    }

    /// Looks after the statuses until the shutdown; from then on nothing is serving.
    pub(super) async fn watch(self, shutdown: CancellationToken) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watch = async {
            loop {
                ticks.tick().await;
                self.report().await;
            }
        };
        shutdown.run_until_cancelled(watch).await;
        for service in self.own.iter().chain(self.forwarded.iter().map(|(name, _)| name)) {
            self.reporter
                .set_service_status(service, ServingStatus::NotServing)
                .await;
        }
        self.reporter
            .set_service_status("", ServingStatus::NotServing)
            .await;
    }

    async fn report(&self) {
        self.report_own().await;
        join_all(self.forwarded.iter().map(async |(service, channel)| {
            let status = serving_if(is_serving(channel.clone(), service).await);
            self.reporter.set_service_status(service, status).await;
        }))
        .await;
    }

    async fn report_own(&self) {
        let status = serving_if(self.mesh.is_connected());
        for service in self.own.iter().chain([&""]) {
            self.reporter.set_service_status(service, status).await;
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
    match timeout(ANSWER_TIMEOUT, HealthClient::new(channel).check(request)).await {
        Ok(Ok(answer)) => answer.into_inner().status() == health_check_response::ServingStatus::Serving,
        // It answers, it just has nothing to say about its health.
        Ok(Err(status)) => matches!(status.code(), Code::Unimplemented | Code::NotFound),
        Err(_) => false,
    }
}
