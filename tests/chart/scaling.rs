//! What autoscalers measure.

use serde_json::{Value, json};

use crate::helm::{Helm, Input, Objects, items};

fn scaled(helm: &Helm, values: &str) -> Objects {
    helm.objects(&Input::values(values))
}

fn consumers(scaled_object: &Value) -> Vec<&str> {
    let triggers = items(&scaled_object["spec"]["triggers"]).iter();
    triggers
        .map(|trigger| trigger["metadata"]["consumer"].as_str().unwrap())
        .collect()
}

#[test]
fn keda_asks_nats_for_the_pending_messages_of_each_consumer() {
    let Some(helm) = Helm::find() else { return };
    let objects = scaled(&helm, "autoscaling: {mode: keda}");
    let fanout = objects.get("ScaledObject", "herald-fanout-all");
    assert_eq!(
        consumers(fanout),
        [
            "fanout-high",
            "slice-high",
            "fanout-normal",
            "slice-normal",
            "fanout-low",
            "slice-low",
            "redrive-fanout",
            "redrive-slice",
        ]
    );
    let trigger = &fanout["spec"]["triggers"][1];
    assert_eq!(trigger["type"], "nats-jetstream");
    assert_eq!(
        trigger["metadata"],
        json!({
            "natsServerMonitoringEndpoint": "herald-nats-headless.herald.svc.cluster.local:8222",
            "useHttps": "false",
            "account": "$G",
            "stream": "SLICES",
            "consumer": "slice-high",
            "lagThreshold": "8",
            "activationLagThreshold": "0",
        })
    );
    assert_eq!(
        consumers(objects.get("ScaledObject", "herald-push-all")),
        ["push-high", "push-normal", "push-low", "later", "redrive-push"]
    );
    assert_eq!(
        objects.of_kind("ScaledObject").count(),
        3,
        "archive and analytics are not scaled by default"
    );
}

#[test]
fn lanes_apart_are_scaled_apart_with_settings_of_their_own() {
    let Some(helm) = Helm::find() else { return };
    let lanes = "lanes: [{name: fast, lanes: [high, normal], autoscaling: {maxReplicas: 6, pendingPerReplica: {timeline: 7}}}, \
                 {name: low, lanes: [low], autoscaling: {minReplicas: 0}}]";
    let objects = scaled(
        &helm,
        &format!("autoscaling: {{mode: keda}}\ntimeline: {{{lanes}}}"),
    );
    let fast = objects.get("ScaledObject", "herald-timeline-fast");
    assert_eq!(
        consumers(fast),
        ["timeline-high", "timeline-normal", "redrive-timeline"]
    );
    assert_eq!(fast["spec"]["maxReplicaCount"], 6);
    assert_eq!(fast["spec"]["triggers"][0]["metadata"]["lagThreshold"], "7");
    let low = objects.get("ScaledObject", "herald-timeline-low");
    assert_eq!(consumers(low), ["timeline-low"]);
    assert_eq!(
        (&low["spec"]["minReplicaCount"], &low["spec"]["maxReplicaCount"]),
        (&json!(0), &json!(4))
    );
    let args = &objects.get("Deployment", "herald-timeline-fast")["spec"]["template"]["spec"]["containers"]
        [0]["args"];
    assert!(items(args).contains(&"high,normal".into()), "{args}");
}

#[test]
fn keda_asks_the_scaler_for_the_seconds_of_work() {
    let Some(helm) = Helm::find() else { return };
    let low = "lanes: [{name: now, lanes: [high, normal]}, {name: low, lanes: [low], autoscaling: {targetSeconds: 60}}]";
    let objects = scaled(
        &helm,
        &format!("autoscaling: {{mode: keda, signal: slo}}\npush: {{{low}}}"),
    );
    let metadata = |name: &str| -> Vec<Value> {
        let triggers = items(&objects.get("ScaledObject", name)["spec"]["triggers"]).iter();
        triggers
            .map(|trigger| {
                assert_eq!(trigger["type"], "external");
                trigger["metadata"].clone()
            })
            .collect()
    };
    let of = |role: &str, lane: &str, seconds: &str| json!({"scalerAddress": "herald-scaler.herald.svc.cluster.local:7700", "role": role, "lane": lane, "targetSeconds": seconds});
    assert_eq!(metadata("herald-timeline-all"), [of("timeline", "", "5")]);
    assert_eq!(
        metadata("herald-push-now"),
        [of("push", "high", "5"), of("push", "normal", "5")]
    );
    assert_eq!(metadata("herald-push-low"), [of("push", "low", "60")]);
    objects.get("Service", "herald-scaler");
    let env = &objects.get("Deployment", "herald-scaler")["spec"]["template"]["spec"]["containers"][0]["env"];
    assert!(
        !items(env)
            .iter()
            .any(|variable| variable["name"].as_str().unwrap().contains("STORE")),
        "the scaler needs NATS alone"
    );
    let plain = scaled(&helm, "autoscaling: {mode: keda}");
    assert!(
        plain
            .of_kind("Deployment")
            .all(|deployment| deployment["metadata"]["name"] != "herald-scaler")
    );
}

#[test]
fn keda_reaches_what_it_asks() {
    let Some(helm) = Helm::find() else { return };
    let admits = |objects: &Objects, policy: &str, port: u64| {
        items(&objects.get("NetworkPolicy", policy)["spec"]["ingress"])
            .iter()
            .any(|rule| {
                rule["ports"][0]["port"] == port
                    && rule["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
                        == "scaling"
            })
    };
    let namespace = "networkPolicy: {kedaNamespace: scaling}";
    let pending = scaled(&helm, &format!("autoscaling: {{mode: keda}}\n{namespace}"));
    assert!(admits(&pending, "herald-nats", 8222));
    let slo = scaled(
        &helm,
        &format!("autoscaling: {{mode: keda, signal: slo}}\n{namespace}"),
    );
    assert!(admits(&slo, "herald-scaler", 7700));
    let none = scaled(&helm, namespace);
    assert!(!admits(&none, "herald-nats", 8222));
}

#[test]
fn an_hpa_has_the_same_numbers_under_the_names_of_its_adapter() {
    let Some(helm) = Helm::find() else { return };
    let slo = scaled(
        &helm,
        "autoscaling: {mode: hpa, signal: slo, hpa: {labels: {namespace: herald}}}",
    );
    let metric = |objects: &Objects, index: usize| {
        objects.get("HorizontalPodAutoscaler", "herald-timeline-all")["spec"]["metrics"][index]["external"]
            .clone()
    };
    assert_eq!(
        metric(&slo, 0),
        json!({
            "metric": {"name": "herald_scaler_work_seconds", "selector": {"matchLabels": {"role": "timeline", "namespace": "herald"}}},
            "target": {"type": "AverageValue", "averageValue": "5"},
        })
    );
    let pending = scaled(&helm, "autoscaling: {mode: hpa}");
    assert_eq!(
        metric(&pending, 1),
        json!({
            "metric": {
                "name": "jetstream_consumer_num_pending",
                "selector": {"matchLabels": {"stream_name": "TIMELINE", "consumer_name": "timeline-normal"}},
            },
            "target": {"type": "AverageValue", "averageValue": "500"},
        })
    );
}
