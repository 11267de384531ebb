//! Values that are unusual and right: names, numbers, and texts that YAML could take for something else.

use serde_json::{Value, json};

use crate::helm::{Helm, Input, Objects, id, items};

/// The objects of a release of this name.
fn release(helm: &Helm, release: &'static str, values: &str) -> Objects {
    helm.objects(&Input {
        release,
        ..Input::values(values)
    })
}

/// The container of a role's Deployment.
fn container<'a>(objects: &'a Objects, name: &str) -> &'a Value {
    &objects.get("Deployment", name)["spec"]["template"]["spec"]["containers"][0]
}

/// The value of a variable.
fn variable<'a>(container: &'a Value, name: &str) -> &'a Value {
    let mut all = items(&container["env"]).iter();
    &all.find(|variable| variable["name"] == name).unwrap()["value"]
}

#[test]
fn names_that_look_like_other_types_stay_texts() {
    let Some(helm) = Helm::find() else { return };
    for name in ["on", "true", "null", "y", "no"] {
        let objects = release(&helm, name, "");
        for pod in objects.pods() {
            assert_eq!(
                pod.metadata["labels"]["app.kubernetes.io/instance"], name,
                "{}",
                pod.owner
            );
        }
    }
    let values = "fullnameOverride: herald\nnameOverride: \"7\"\nserviceAccounts: {existing: \"1e3\"}\nglobal: {imagePullSecrets: \
                  [\"123\", {name: \"456\"}]}\npostgresql: {auth: {existingSecret: \"12\", passwordKey: \"34\"}}\nfanout: {lanes: [{name: \
                  \"1\", lanes: [high, normal, low]}]}\nvalkey: {maxMemory: \"419430400\"}\npods: {priorityClassName: \"9\"}\n";
    let objects = release(&helm, "123", values);
    let pod = &objects.get("Deployment", "herald-fanout-1")["spec"]["template"];
    assert_eq!(
        pod["metadata"]["labels"],
        json!({
            "app.kubernetes.io/name": "7",
            "app.kubernetes.io/instance": "123",
            "app.kubernetes.io/component": "fanout",
            "herald.dev/lanes": "1",
        })
    );
    assert_eq!(pod["spec"]["serviceAccountName"], "1e3");
    assert_eq!(pod["spec"]["priorityClassName"], "9");
    assert_eq!(
        pod["spec"]["imagePullSecrets"],
        json!([{"name": "123"}, {"name": "456"}])
    );
    let stateful =
        |name: &str| &objects.get("StatefulSet", name)["spec"]["template"]["spec"]["containers"][0];
    assert!(
        items(&stateful("herald-valkey")["args"])
            .iter()
            .all(Value::is_string)
    );
    let env = items(&stateful("herald-postgresql")["env"]);
    let password = env
        .iter()
        .find(|variable| variable["name"] == "POSTGRES_PASSWORD")
        .unwrap();
    assert_eq!(
        password["valueFrom"]["secretKeyRef"],
        json!({"name": "12", "key": "34"})
    );
}

#[test]
fn releases_whose_long_names_begin_alike_have_objects_of_their_own() {
    let Some(helm) = Helm::find() else { return };
    let [one, two] = [
        "notifications-of-production-in-europe-west-primary-a",
        "notifications-of-production-in-europe-west-primary-b",
    ]
    .map(|name| release(&helm, name, ""));
    for object in &one.0 {
        let name = object["metadata"]["name"].as_str().unwrap();
        assert!(
            two.0.iter().all(|other| id(other) != id(object)),
            "{}",
            id(object)
        );
        assert!(object["kind"] != "Service" || name.len() <= 63, "{name}");
    }
}

#[test]
fn names_that_no_service_can_have_are_refused() {
    let Some(helm) = Helm::find() else { return };
    for name in ["1st", "my.release"] {
        let refusal = helm.refusal(&Input {
            release: name,
            ..Input::default()
        });
        assert!(refusal.contains("set fullnameOverride to a name"), "{refusal}");
        let objects = release(&helm, name, "fullnameOverride: mine");
        objects.get("Service", "mine-gateway");
    }
}

#[test]
fn a_change_of_names_is_refused_by_the_api_server() {
    let Some(helm) = Helm::find() else { return };
    let names = |values: &str| {
        let objects = helm.objects(&Input::values(values));
        let fixed = objects.get("ConfigMap", "herald-names-cannot-change-after-install");
        assert_eq!(fixed["immutable"], true);
        fixed["data"].clone()
    };
    let before = names("");
    assert_eq!(before, names("gateway: {replicas: 2}"));
    assert_ne!(before, names("fullnameOverride: other"));
    assert_ne!(before, names("nameOverride: era"));
}

#[test]
fn large_numbers_are_written_in_full() {
    let Some(helm) = Helm::find() else { return };
    let values = "pods: {extraEnv: {A: 1000000, B: 1.5, C: true}}\npostgresql: {maxConnections: 1000000, parameters: {max_wal_size: \
                  2097152}}\ntest: {timeoutSeconds: 1000000}\nautoscaling: {mode: keda, signal: slo, targetSeconds: 1000000}\nnats: {maxFileStore: \
                  11811160064, storage: {size: 12884901888}}\n";
    let input = Input::values(values);
    let text = helm.text(&input);
    assert!(!text.contains("e+"), "{text}");
    let objects = helm.objects(&input);
    let gateway = container(&objects, "herald-gateway");
    for (name, value) in [("A", "1000000"), ("B", "1.5"), ("C", "true")] {
        assert_eq!(variable(gateway, name), value);
    }
}

#[test]
fn empty_sections_are_empty() {
    let Some(helm) = Helm::find() else { return };
    let values = "commonLabels:\ncommonAnnotations:\nconfig:\nglobal:\npatches:\nextraManifests:\n";
    assert_eq!(
        helm.objects(&Input::values(values)),
        helm.objects(&Input::default())
    );
}

#[test]
fn variables_may_use_others() {
    let Some(helm) = Helm::find() else { return };
    let objects = helm.objects(&Input::values("gateway: {extraEnv: {A: \"$(B)\", B: b}}"));
    let env = items(&container(&objects, "herald-gateway")["env"]);
    let at = |name: &str| env.iter().position(|variable| variable["name"] == name);
    assert!(at("B") < at("A"));
}

#[test]
fn recreate_has_no_options_of_rolling_updates() {
    let Some(helm) = Helm::find() else { return };
    let objects = helm.objects(&Input::values("pods: {strategy: {type: Recreate}}"));
    let strategy = &objects.get("Deployment", "herald-gateway")["spec"]["strategy"];
    assert_eq!(*strategy, json!({"type": "Recreate"}));
}

/// A job whose sidecar goes on never ends.
#[test]
fn jobs_have_no_sidecars_of_the_roles() {
    let Some(helm) = Helm::find() else { return };
    let objects = helm.objects(&Input::values(
        "pods: {extraContainers: [{name: side, image: a}]}",
    ));
    for pod in objects.pods() {
        let has_side = items(&pod.spec["containers"])
            .iter()
            .any(|container| container["name"] == "side");
        let is_role = pod.owner.starts_with("Deployment") && pod.owner != "Deployment herald-jaeger";
        assert_eq!(has_side, is_role, "{}", pod.owner);
    }
}

#[test]
fn everything_listens_on_the_address_of_an_ipv6_cluster() {
    let Some(helm) = Helm::find() else { return };
    let values = "listenAddress: \"[::]\"\nwebhooks: {inCluster: {enabled: true}}\nnats: {replicas: 3}";
    let text = helm.text(&Input::values(values));
    assert!(!text.replace("0.0.0.0/0", "").contains("0.0.0.0:"), "{text}");
    assert!(text.contains("http://[$(POD_IP)]:8090"));
}

/// A patch with the exact name of an object that is made is never refused.
#[test]
fn every_object_can_be_patched_by_its_name() {
    let Some(helm) = Helm::find() else { return };
    let values = "autoscaling: {mode: keda}\nmetrics: {podMonitor: {enabled: true}, rules: {enabled: true}, dashboards: {enabled: true}}\ningress: {enabled: true, hosts: [a.example], tls: [{secretName: \
                  a}]}\ngrpcRoute: {enabled: true, parentRefs: [{name: a}]}\nanalytics: {storage: {type: persistentVolumeClaim}}\nnats: {replicas: 3}\n";
    let objects = helm.objects(&Input::values(values));
    // The name of a Job has a hash of the patches.
    let others = objects.0.iter().filter(|object| object["kind"] != "Job");
    let patches: Vec<Value> = others
        .map(|object| {
            let target = json!({"kind": object["kind"], "name": object["metadata"]["name"]});
            json!({"target": target, "patch": {"metadata": {"annotations": {"patched": "yes"}}}})
        })
        .collect();
    let patched = helm.objects(&Input::values(format!(
        "{values}patches: {}\n",
        Value::from(patches)
    )));
    for object in patched.0.iter().filter(|object| object["kind"] != "Job") {
        assert_eq!(
            object["metadata"]["annotations"]["patched"],
            "yes",
            "{}",
            id(object)
        );
    }
}
