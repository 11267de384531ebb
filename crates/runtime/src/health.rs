//! `grpc.health.v1` from the readiness checks of a process.

use std::{collections::HashMap, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::http::Readiness;

/// Interval at which the checks run.
const INTERVAL: Duration = Duration::from_secs(1);

/// The name that is SERVING as long as the process answers, whatever it depends on and also while it drains: for liveness
/// probes, which must not restart a process because something else is away.
pub const LIVENESS: &str = "liveness";

/// Names of services whose health follows the same checks. The empty name is the whole process.
#[derive(Debug, Clone)]
pub struct Group {
    /// The names.
    pub names: Vec<String>,
    /// SERVING while no required check fails.
    pub readiness: Readiness,
}

/// The health service. All names but [`LIVENESS`] are NOT_SERVING once `draining` is cancelled. Must be called within a
/// tokio runtime.
pub async fn routes(groups: Vec<Group>, draining: CancellationToken) -> Routes {
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter
        .set_service_status(LIVENESS, ServingStatus::Serving)
        .await;
    let mut reported = HashMap::new();
    report(&reporter, &groups, false, &mut reported).await;
    tokio::spawn(async move {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reporting = async {
            loop {
                ticks.tick().await;
                report(&reporter, &groups, false, &mut reported).await;
            }
        };
        draining.run_until_cancelled(reporting).await;
        report(&reporter, &groups, true, &mut reported).await;
    });
    Routes::new(service)
}

/// Reports the statuses that have changed. The reporter would send an unchanged one to all watchers again.
async fn report(
    reporter: &HealthReporter,
    groups: &[Group],
    draining: bool,
    reported: &mut HashMap<String, ServingStatus>,
) {
    for group in groups {
        let status = if !draining && group.readiness.failing().is_empty() {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        for name in &group.names {
            if reported.insert(name.clone(), status) != Some(status) {
                reporter.set_service_status(name, status).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use tokio::net::TcpListener;
    use tonic::transport::Channel;
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

    use super::*;

    #[tokio::test]
    async fn the_health_of_a_service_follows_its_checks() {
        let (store, process) = (Readiness::new(), Readiness::new());
        let up = store.flag("store");
        up.set(true);
        let reports = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&reports);
        store.check("count", move || {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        process.include(store.clone());
        let group = |name: &str, readiness: &Readiness| Group {
            names: vec![name.to_owned()],
            readiness: readiness.clone(),
        };
        let draining = CancellationToken::new();
        let groups = vec![group("", &process), group("graph", &store)];
        let routes = routes(groups, draining.clone()).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let serving = crate::grpc::serve_routes(listener, None, routes, CancellationToken::new());
        tokio::spawn(serving);
        let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
        let mut watches = Vec::new();
        for service in ["", "graph"] {
            let request = HealthCheckRequest {
                service: service.into(),
            };
            let watch = HealthClient::new(channel.clone()).watch(request).await.unwrap();
            watches.push(watch.into_inner());
        }
        let mut expect = async |expected| {
            for watch in &mut watches {
                assert_eq!(watch.message().await.unwrap().unwrap().status, expected);
            }
        };
        expect(1).await;
        // A status that does not change is not sent again.
        let reported = reports.load(Ordering::Relaxed);
        while reports.load(Ordering::Relaxed) < reported + 4 {
            tokio::task::yield_now().await;
        }
        up.set(false);
        expect(2).await;
        up.set(true);
        expect(1).await;
        draining.cancel();
        expect(2).await;
        let request = HealthCheckRequest {
            service: LIVENESS.into(),
        };
        let alive = HealthClient::new(channel).check(request).await.unwrap();
        assert_eq!(alive.into_inner().status, 1);
    }
}
