//! The trace of one post in Jaeger, across the pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use harness::Clients;
use herald_proto::v1;
use serde_json::Value;

use crate::{
    cluster::{Cluster, Log},
    load::{Api, author},
};

/// Time limit for the spans to be in Jaeger.
const LIMIT: Duration = Duration::from_mins(1);
/// The parts of a fan-out that a trace shows.
const ROLES: [&str; 4] = ["gateway", "fanout", "timeline", "push"];

/// Posts with a trace id, and asserts that Jaeger has one trace with spans of each role, from different pods.
pub(crate) async fn one_trace_across_pods(cluster: &Cluster, log: Log, api: &Api) -> u64 {
    let trace_id = uuid::Uuid::new_v4().simple().to_string();
    let traceparent = format!("00-{trace_id}-00f067aa0ba902b7-01");
    let call = |clients: Clients| {
        let mut request = tonic::Request::new(v1::SubmitPostRequest {
            request_id: uuid::Uuid::new_v4().to_string(),
            author_id: author(0),
            text: "a post with a trace".into(),
            ..Default::default()
        });
        let value = traceparent.parse().expect("an ASCII header");
        request.metadata_mut().insert("traceparent", value);
        async move { Ok(clients.posts().submit_post(request).await?.into_inner().post_id) }
    };
    let (post, _) = api.call("SubmitPost", LIMIT, call).await;
    let jaeger = cluster.reach(&format!("{}-jaeger", cluster.release), 16686).await;
    let url = format!("http://{}/api/traces/{trace_id}", jaeger.address);
    // The HTTP client wants one even for plain http. An error says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let pods = harness::until_some("Jaeger has the spans of all roles", LIMIT, || async {
        let answer = reqwest::get(&url).await.ok()?;
        let trace: Value = serde_json::from_str(&answer.text().await.ok()?).ok()?;
        let pods = pods_by_role(&trace["data"][0]);
        ROLES.iter().all(|role| pods.contains_key(*role)).then_some(pods)
    })
    .await;
    let distinct: BTreeSet<&String> = pods.values().flatten().collect();
    assert!(
        distinct.len() >= ROLES.len(),
        "the spans of the roles come from the pods {pods:?}"
    );
    log.print(format_args!("trace {trace_id} has spans of {pods:?}"));
    post
}

/// The pods of the spans of a trace, by the role of their process.
fn pods_by_role(trace: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let mut pods: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let spans = trace["spans"].as_array().into_iter().flatten();
    for span in spans {
        let process = &trace["processes"][span["processID"].as_str().unwrap_or_default()];
        let tags = process["tags"].as_array();
        let tag = |name: &str| {
            let found = tags?.iter().find(|tag| tag["key"] == name)?;
            found["value"].as_str().map(ToOwned::to_owned)
        };
        let Some(pod) = tag("k8s.pod.name").or_else(|| tag("host.name")) else {
            continue;
        };
        if let Some(role) = ROLES.iter().find(|role| pod.contains(**role)) {
            pods.entry((*role).to_owned()).or_default().insert(pod);
        }
    }
    pods
}
