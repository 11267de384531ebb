//! A receiver of pushes in a pod beside the release.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, is_ready},
    load::{Accepted, DEVICES, follows, percentile, reader},
};

/// Name of the pod and of its service.
const NAME: &str = "push-sink";
const PORT: u16 = 7799;
/// The label by which the values of the release let pushes reach the pod.
const LABEL: &str = "push-sink";
/// Time limit for the last pushes to arrive.
const PUSH_LIMIT: Duration = Duration::from_mins(2);

/// Starts the receiver and waits until it has registered its devices.
pub(crate) async fn start(cluster: &Cluster, image: &str) {
    let users = (0..DEVICES).map(reader);
    let mut arguments = vec![
        "push-sink".to_owned(),
        format!("--server=http://{}-gateway:7700", cluster.release),
        format!("--listen=0.0.0.0:{PORT}"),
        format!("--public-url=http://{NAME}:{PORT}"),
        "--keep-devices".into(),
        "--output=json".into(),
        "--register".into(),
    ];
    arguments.extend(users);
    let security = json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
    });
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": NAME, "labels": {"app": LABEL}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": NAME,
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "args": arguments,
                "ports": [{"containerPort": PORT}],
                "securityContext": security,
                "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}},
            }],
        },
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME},
        "spec": {"selector": {"app": LABEL}, "ports": [{"port": PORT}]},
    });
    cluster.apply(&service).await;
    cluster.apply(&pod).await;
    harness::until("the receiver has registered its devices", PUSH_LIMIT, || async {
        received(cluster).await.registered
    })
    .await;
    let pod = cluster.get("pod", NAME).await.expect("the pod is there");
    assert!(is_ready(&pod), "{pod}");
}

/// What the receiver has printed.
#[derive(Debug, Default)]
pub(crate) struct Received {
    registered: bool,
    /// Number of receipts of each (post, user).
    pushes: BTreeMap<(u64, String), u64>,
    latency_ms: Vec<u64>,
}

impl Received {
    pub(crate) fn repeated(&self) -> u64 {
        self.pushes.values().map(|count| count - 1).sum()
    }

    pub(crate) fn latency(&self, percent: usize) -> Duration {
        percentile(self.latency_ms.clone(), percent)
    }

    pub(crate) fn len(&self) -> usize {
        self.pushes.len()
    }
}

/// Reads what the receiver has printed.
pub(crate) async fn received(cluster: &Cluster) -> Received {
    let log = cluster.kubectl(&["logs", NAME, "--tail=-1"]).await;
    let mut received = Received::default();
    for line in log.stdout.lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        match line["event"].as_str() {
            Some("listening") => received.registered = line["registered"] == DEVICES,
            Some("push") => {
                let (Some(post), Some(user)) = (line["post_id"].as_u64(), line["recipient_id"].as_str())
                else {
                    panic!("a push without a post or a recipient: {line}");
                };
                *received.pushes.entry((post, user.to_owned())).or_default() += 1;
                received
                    .latency_ms
                    .extend(line["latency_ms"].as_f64().map(|ms| ms as u64));
            }
            _ => {}
        }
    }
    received
}

/// Waits until each owed push has arrived. Returns what has arrived, and panics if something is missing or too much.
pub(crate) async fn all_received(cluster: &Cluster, accepted: &Accepted) -> Received {
    let posts = accepted.posts.lock().clone();
    let owed: Vec<(u64, String)> = posts
        .iter()
        .flat_map(|(id, of)| {
            let users = (0..DEVICES).filter(|r| follows(*r, *of));
            users.map(|r| (*id, reader(r)))
        })
        .collect();
    let end = Instant::now() + PUSH_LIMIT;
    loop {
        let received = received(cluster).await;
        let missing: Vec<_> = owed
            .iter()
            .filter(|push| !received.pushes.contains_key(push))
            .collect();
        if missing.is_empty() {
            let extra = received.len() - owed.len();
            assert_eq!(extra, 0, "{extra} pushes were sent that nobody asked for");
            return received;
        }
        assert!(
            Instant::now() < end,
            "{} of {} pushes have not arrived, such as {:?}",
            missing.len(),
            owed.len(),
            &missing[..missing.len().min(5)]
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
