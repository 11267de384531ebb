//! Rules that hold for whatever values are given.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    golden::cases,
    helm::{Helm, Input, Objects, Pod, id, items},
};

/// The golden cases and the ways to scale.
pub(crate) fn renderings(helm: &Helm) -> Vec<(String, Objects)> {
    let scaled = [
        "{mode: keda}",
        "{mode: keda, signal: slo}",
        "{mode: hpa}",
        "{mode: hpa, signal: slo}",
    ];
    let scaled = scaled.map(|values| (values.to_owned(), Input::values(format!("autoscaling: {values}"))));
    let all = "nats: {replicas: 3}\nwebhooks: {inCluster: {enabled: true}}\nscaler: {enabled: true}\n";
    let inputs = cases().into_iter().chain(scaled);
    let inputs = inputs.chain([("three servers".to_owned(), Input::values(all))]);
    inputs.map(|(name, input)| (name, helm.objects(&input))).collect()
}

fn containers<'a>(pod: &'a Pod<'_>) -> impl Iterator<Item = &'a Value> {
    let all = [&pod.spec["initContainers"], &pod.spec["containers"]];
    all.into_iter().flat_map(items)
}

#[test]
fn every_pod_keeps_the_restricted_pod_security() {
    let Some(helm) = Helm::find() else { return };
    for (name, objects) in renderings(&helm) {
        for pod in objects.pods() {
            let owner = format!("{name}: {}", pod.owner);
            let context = &pod.spec["securityContext"];
            assert_eq!(context["runAsNonRoot"], true, "{owner}");
            assert!(context["runAsUser"].as_u64().unwrap() > 0, "{owner}");
            assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault", "{owner}");
            for field in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(pod.spec[field].is_null(), "{owner}: {field}");
            }
            for volume in items(&pod.spec["volumes"]) {
                assert!(volume["hostPath"].is_null(), "{owner}");
            }
            for container in containers(&pod) {
                let context = &container["securityContext"];
                assert_eq!(context["allowPrivilegeEscalation"], false, "{owner}");
                assert_eq!(context["readOnlyRootFilesystem"], true, "{owner}");
                assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}), "{owner}");
                assert!(context["privileged"].is_null(), "{owner}");
            }
        }
    }
}

#[test]
fn only_the_job_that_makes_secrets_has_a_token() {
    let Some(helm) = Helm::find() else { return };
    for (name, objects) in renderings(&helm) {
        for pod in objects.pods() {
            let has_token = pod.owner.starts_with("Job herald-secrets-");
            assert_eq!(
                pod.spec["automountServiceAccountToken"], has_token,
                "{name}: {}",
                pod.owner
            );
            // Variables of services, such as HERALD_GRAPH_PORT, are unknown settings of Herald.
            assert_eq!(pod.spec["enableServiceLinks"], false, "{name}: {}", pod.owner);
        }
        for account in objects.of_kind("ServiceAccount") {
            assert_eq!(account["automountServiceAccountToken"], false, "{}", id(account));
        }
    }
}

#[test]
fn selectors_and_claims_hold_no_version() {
    let Some(helm) = Helm::find() else { return };
    for (name, objects) in renderings(&helm) {
        for object in &objects.0 {
            let mut labels = vec![&object["spec"]["selector"]["matchLabels"]];
            if object["kind"] == "Service" {
                labels.push(&object["spec"]["selector"]);
            }
            let claims = items(&object["spec"]["volumeClaimTemplates"]);
            labels.extend(claims.iter().map(|claim| &claim["metadata"]["labels"]));
            for key in labels
                .into_iter()
                .filter_map(Value::as_object)
                .flat_map(|labels| labels.keys())
            {
                let allowed = [
                    "app.kubernetes.io/name",
                    "app.kubernetes.io/instance",
                    "app.kubernetes.io/component",
                    "herald.dev/lanes",
                ];
                assert!(allowed.contains(&key.as_str()), "{name}: {}: {key}", id(object));
            }
        }
    }
}

#[test]
fn selectors_select_the_pods_of_their_object() {
    let Some(helm) = Helm::find() else { return };
    for (name, objects) in renderings(&helm) {
        for kind in ["Deployment", "StatefulSet"] {
            for object in objects.of_kind(kind) {
                let selector = object["spec"]["selector"]["matchLabels"].as_object().unwrap();
                let selected = objects.pods().into_iter().filter(|pod| {
                    selector
                        .iter()
                        .all(|(key, value)| pod.metadata["labels"][key] == *value)
                });
                let owners: Vec<String> = selected.map(|pod| pod.owner).collect();
                assert_eq!(owners, [id(object)], "{name}");
            }
        }
    }
}

#[test]
fn an_autoscaler_owns_the_replicas_of_its_deployment() {
    let Some(helm) = Helm::find() else { return };
    for (name, objects) in renderings(&helm) {
        let scalers = objects
            .of_kind("ScaledObject")
            .chain(objects.of_kind("HorizontalPodAutoscaler"));
        let targets = scalers.map(|scaler| scaler["spec"]["scaleTargetRef"]["name"].as_str().unwrap());
        let scaled: Vec<&str> = targets.collect();
        for deployment in objects.of_kind("Deployment") {
            let is_scaled = scaled.contains(&deployment["metadata"]["name"].as_str().unwrap());
            assert_eq!(
                deployment["spec"]["replicas"].is_null(),
                is_scaled,
                "{name}: {}",
                id(deployment)
            );
        }
        assert_eq!(
            scaled.iter().collect::<BTreeSet<_>>().len(),
            scaled.len(),
            "{name}: {scaled:?}"
        );
        for target in scaled {
            objects.get("Deployment", target);
        }
    }
}

#[test]
fn no_container_has_a_variable_twice() {
    let Some(helm) = Helm::find() else { return };
    for (name, objects) in renderings(&helm) {
        for pod in objects.pods() {
            for container in containers(&pod) {
                let mut seen = BTreeSet::new();
                for variable in items(&container["env"]) {
                    let variable_name = variable["name"].as_str().unwrap();
                    assert!(
                        seen.insert(variable_name),
                        "{name}: {}: {variable_name}",
                        pod.owner
                    );
                    // $(NAME) is replaced only if NAME stands before it.
                    let value = variable["value"].as_str().unwrap_or_default();
                    for used in value
                        .split("$(")
                        .skip(1)
                        .filter_map(|rest| rest.split(')').next())
                    {
                        assert!(
                            seen.contains(used),
                            "{name}: {}: {variable_name} uses {used}",
                            pod.owner
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_pod_has_more_time_to_end_than_herald_takes() {
    let Some(helm) = Helm::find() else { return };
    let objects = helm.objects(&Input::values("shutdown: {seconds: 60, delaySeconds: 10}"));
    let text = objects.get("ConfigMap", "herald")["data"]["herald.toml"]
        .as_str()
        .unwrap();
    assert!(text.contains("shutdown_seconds = 60\n") && text.contains("shutdown_delay_seconds = 10\n"));
    let roles = objects
        .of_kind("Deployment")
        .filter(|deployment| id(deployment) != "Deployment herald-jaeger");
    for deployment in roles {
        let grace = &deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"];
        assert!(grace.as_u64().unwrap() > 70, "{}: {grace}", id(deployment));
    }
}

#[test]
fn a_dependency_that_is_away_restarts_no_pod() {
    let Some(helm) = Helm::find() else { return };
    for (name, objects) in renderings(&helm) {
        for pod in objects.pods() {
            for container in items(&pod.spec["containers"])
                .iter()
                .filter(|container| container["name"] == "herald")
            {
                let role = container["args"][1].as_str().unwrap();
                // Where gRPC has TLS, which the kubelet has not, the probes ask the HTTP port.
                let probes = if container["livenessProbe"]["grpc"].is_null() {
                    ["/httpGet/path", "/healthz", "/healthz", "/readyz"]
                } else {
                    ["/grpc/service", "liveness", "liveness", role]
                };
                let [asked, startup, liveness, readiness] = probes;
                for (probe, expected) in [
                    ("startupProbe", startup),
                    ("livenessProbe", liveness),
                    ("readinessProbe", readiness),
                ] {
                    let found = container[probe].pointer(asked).and_then(Value::as_str);
                    assert_eq!(found, Some(expected), "{name}: {role}: {probe}");
                }
            }
        }
    }
}

#[test]
fn the_default_install_fits_into_two_cores_and_two_gib() {
    let Some(helm) = Helm::find() else { return };
    let objects = helm.objects(&Input::default());
    let (mut cpu, mut memory) = (0, 0);
    for kind in ["Deployment", "StatefulSet"] {
        for object in objects.of_kind(kind) {
            let replicas = object["spec"]["replicas"].as_u64().unwrap();
            for container in items(&object["spec"]["template"]["spec"]["containers"]) {
                let requests = &container["resources"]["requests"];
                let number = |key: &str, unit: &str| -> u64 {
                    let text = requests[key]
                        .as_str()
                        .unwrap_or_else(|| panic!("{}: no request of {key}", id(object)));
                    text.strip_suffix(unit).unwrap().parse().unwrap()
                };
                cpu += replicas * number("cpu", "m");
                memory += replicas * number("memory", "Mi");
            }
        }
    }
    println!("the default install requests {cpu} millicores and {memory} MiB");
    assert!(cpu <= 2_000, "{cpu} millicores");
    assert!(memory <= 2_048, "{memory} MiB");
}

/// Without the URL of NATS, a configuration with replicated streams is refused: Herald's own server has no replicas.
#[test]
fn every_container_of_herald_knows_its_nats() {
    let Some(helm) = Helm::find() else { return };
    for (name, objects) in renderings(&helm) {
        let pods = objects.pods().into_iter();
        for pod in pods.filter(|pod| {
            items(&pod.spec["volumes"])
                .iter()
                .any(|volume| volume["configMap"]["name"] == "herald")
        }) {
            for container in containers(&pod) {
                let mut env = items(&container["env"]).iter();
                assert!(
                    env.any(|variable| variable["name"] == "HERALD_NATS__URL"),
                    "{name}: {}",
                    pod.owner
                );
            }
        }
    }
}

#[test]
fn the_name_of_a_job_changes_with_what_it_runs() {
    let Some(helm) = Helm::find() else { return };
    let names = |values: &str| -> BTreeSet<String> {
        helm.objects(&Input::values(values))
            .of_kind("Job")
            .map(id)
            .collect()
    };
    let before = names("");
    assert_eq!(before.len(), 2, "{before:?}");
    assert_eq!(
        before,
        names("gateway: {replicas: 2}"),
        "what no job runs changes no name"
    );
    for values in [
        "image: {tag: other}",
        "commonLabels: {team: a}",
        "global: {imagePullSecrets: [pull]}",
        "patches: [{target: {kind: Job, name: \"*\"}, patch: {spec: {template: {spec: {hostname: a}}}}}]",
        "jobs: {extraEnv: {A: b}}",
    ] {
        let after = names(values);
        assert!(before.is_disjoint(&after), "{values}: {after:?}");
    }
}

/// Helm goes on with the other objects after a refusal, so the StatefulSet must refuse the change too.
#[test]
fn what_can_not_change_is_refused_by_the_api_server() {
    let Some(helm) = Helm::find() else { return };
    let immutable = |values: &str| {
        let objects = helm.objects(&Input::values(values));
        let fixed = objects.get("ConfigMap", "herald-nats-cannot-change-after-install");
        assert_eq!(fixed["immutable"], true);
        let set = &objects.get("StatefulSet", "herald-nats")["spec"];
        let fields = [
            "podManagementPolicy",
            "volumeClaimTemplates",
            "selector",
            "serviceName",
        ];
        (fixed["data"].clone(), fields.map(|field| set[field].clone()))
    };
    let before = immutable("");
    assert_eq!(before, immutable("nats: {resources: {requests: {cpu: 200m}}}"));
    for values in [
        "nats: {replicas: 3}",
        "nats: {storage: {size: 20Gi}}",
        "nats: {storage: {storageClass: fast}}",
        "nats: {storage: {enabled: false}}",
    ] {
        let after = immutable(values);
        assert_ne!(before.0, after.0, "{values}");
        assert_ne!(before.1, after.1, "{values}");
    }
    // A server that is started again must find its own configuration.
    let cluster = helm.objects(&Input::values("nats: {replicas: 3}"));
    cluster.get("ConfigMap", "herald-nats-cluster");
    assert!(
        cluster
            .of_kind("ConfigMap")
            .all(|map| map["metadata"]["name"] != "herald-nats")
    );
}

#[test]
fn labels_annotations_secrets_and_registries_reach_every_pod() {
    let Some(helm) = Helm::find() else { return };
    let values = "commonLabels: {team: a}\ncommonAnnotations: {note: b}\n\
                  global: {imageRegistry: mirror.example/x, imagePullSecrets: [pull]}\nimage: {digest: \
                  \"sha256:0000000000000000000000000000000000000000000000000000000000000000\"}\n";
    let objects = helm.objects(&Input::values(values));
    for object in &objects.0 {
        assert_eq!(object["metadata"]["labels"]["team"], "a", "{}", id(object));
        assert_eq!(object["metadata"]["annotations"]["note"], "b", "{}", id(object));
        assert_eq!(object["metadata"]["namespace"], "herald", "{}", id(object));
    }
    for pod in objects.pods() {
        assert_eq!(pod.metadata["labels"]["team"], "a", "{}", pod.owner);
        assert_eq!(pod.metadata["annotations"]["note"], "b", "{}", pod.owner);
        assert_eq!(
            pod.spec["imagePullSecrets"],
            json!([{"name": "pull"}]),
            "{}",
            pod.owner
        );
        for container in containers(&pod) {
            let image = container["image"].as_str().unwrap();
            assert!(image.starts_with("mirror.example/x/"), "{}: {image}", pod.owner);
            if image.contains("/herald") {
                assert_eq!(
                    image,
                    format!("mirror.example/x/herald@sha256:{}", "0".repeat(64))
                );
            }
        }
    }
}

#[test]
fn patches_change_any_object() {
    let Some(helm) = Helm::find() else { return };
    let values = "patches:\n\
        - {target: {kind: Deployment, name: \"{{ .Release.Name }}-gateway\"}, patch: {spec: {paused: false, revisionHistoryLimit: null, minReadySeconds: 0}}}\n\
        - {target: {kind: Service, name: \"herald-n*\"}, patch: {spec: {sessionAffinity: None}}}\n";
    let objects = helm.objects(&Input::values(values));
    let spec = &objects.get("Deployment", "herald-gateway")["spec"];
    assert_eq!(spec["paused"], false);
    assert_eq!(spec["minReadySeconds"], 0);
    assert!(spec["revisionHistoryLimit"].is_null());
    assert_eq!(spec["replicas"], 1);
    for (name, is_patched) in [
        ("herald-nats", true),
        ("herald-nats-headless", true),
        ("herald-graph", false),
    ] {
        assert_eq!(
            objects.get("Service", name)["spec"]["sessionAffinity"] == "None",
            is_patched,
            "{name}"
        );
    }
}

#[test]
fn further_objects_are_templates() {
    let Some(helm) = Helm::find() else { return };
    let values = "extraManifests:\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: \"{{ .Release.Name }}-a\"}}\n- |\n  apiVersion: v1\n  kind: ConfigMap\n  metadata: {name: b}\n";
    let objects = helm.objects(&Input::values(values));
    objects.get("ConfigMap", "herald-a");
    objects.get("ConfigMap", "b");
}
