//! A pod without the labels of the release reaches the API and nothing else.

use std::time::Duration;

use serde_json::json;

use crate::cluster::{Cluster, Log, is_ready};

const PROBE: &str = "policy-probe";
const START_LIMIT: Duration = Duration::from_mins(1);
/// A new pod's first connections can take seconds until its policies are known everywhere.
const OPEN_LIMIT: Duration = Duration::from_secs(30);

/// Asserts what a strange pod reaches.
pub(crate) async fn hold(cluster: &Cluster, log: Log) {
    let database = cluster.list("pods", &cluster.labels("postgresql")).await;
    // This image has bash, which opens TCP connections.
    let image = database[0]["spec"]["containers"][0]["image"].clone();
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": PROBE},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": PROBE,
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "infinity"],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    });
    cluster.apply(&pod).await;
    harness::until("the probe runs", START_LIMIT, || async {
        cluster.get("pod", PROBE).await.is_some_and(|pod| is_ready(&pod))
    })
    .await;
    let release = &cluster.release;
    let gateway = format!("{release}-gateway");
    harness::until("a pod without labels reaches the API", OPEN_LIMIT, || async {
        connects(cluster, &gateway, 7700).await
    })
    .await;
    let closed = [
        ("nats", 4222),
        ("nats-headless", 8222),
        ("postgresql", 5432),
        ("valkey", 6379),
        ("graph", 7700),
        ("analytics", 7700),
        ("deadletter", 7700),
        ("operator", 7702),
        ("jaeger", 4317),
    ];
    for (service, port) in closed {
        let service = format!("{release}-{service}");
        assert!(
            !connects(cluster, &service, port).await,
            "a pod without the labels of the release reaches {service}:{port}"
        );
    }
    log.print(format_args!(
        "a pod without labels reaches {gateway}, and none of {} other ports",
        closed.len()
    ));
    cluster
        .kubectl(&["delete", "pod", PROBE, "--now"])
        .await
        .expect("delete the probe");
}

async fn connects(cluster: &Cluster, service: &str, port: u16) -> bool {
    let script = format!("exec 3<>/dev/tcp/{service}/{port}");
    cluster
        .kubectl(&["exec", PROBE, "--", "timeout", "4", "bash", "-c", &script])
        .await
        .ok
}
