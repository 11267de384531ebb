//! Restarts and deaths of pods under load.

use std::time::Duration;

use crate::cluster::{Cluster, Log, is_ready, name};

/// Herald's own components.
const ROLES: [&str; 8] = [
    "gateway",
    "archive",
    "graph",
    "fanout",
    "timeline",
    "push",
    "analytics",
    "deadletter",
];
/// The bundled stores.
const STORES: [&str; 3] = ["nats", "postgresql", "valkey"];
/// Time limit for a component to be ready again.
const READY_LIMIT: Duration = Duration::from_mins(3);

/// Deletes a pod of each component, one after another; each time, waits until the component is ready again.
pub(crate) async fn delete_a_pod_of_each(cluster: &Cluster, log: Log) {
    for component in ROLES.into_iter().chain(STORES) {
        let pods = cluster.list("pods", &cluster.labels(component)).await;
        // A worker can have been scaled to zero.
        let Some(pod) = pods.first().map(name) else {
            log.print(format_args!("{component} has no pod now"));
            continue;
        };
        cluster
            .kubectl(&["delete", "pod", pod, "--wait=false"])
            .await
            .expect("delete a pod");
        let uid = pods[0]["metadata"]["uid"].clone();
        harness::until("the component is ready again", READY_LIMIT, || async {
            let pods = cluster.list("pods", &cluster.labels(component)).await;
            pods.iter().all(|pod| pod["metadata"]["uid"] != uid) && cluster.ready(component).await > 0
        })
        .await;
        log.print(format_args!("deleted {pod}; {component} is ready again"));
    }
}

/// Waits until all components are ready.
pub(crate) async fn all_ready(cluster: &Cluster) {
    for component in ROLES.into_iter().chain(STORES) {
        harness::until("all components are ready", READY_LIMIT, || async {
            let pods = cluster.list("pods", &cluster.labels(component)).await;
            // Workers without work can have been scaled to zero.
            pods.iter()
                .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
                .all(is_ready)
        })
        .await;
    }
}
