//! Who reaches what.

use serde_json::{Value, json};

use crate::{
    helm::{Helm, Input, Objects, id, items},
    rules::renderings,
};

#[test]
fn every_pod_is_under_a_policy_that_denies_all_else() {
    let Some(helm) = Helm::find() else { return };
    for (name, objects) in renderings(&helm) {
        let policies: Vec<&Value> = objects.of_kind("NetworkPolicy").collect();
        for policy in &policies {
            assert_eq!(
                policy["spec"]["policyTypes"],
                json!(["Ingress", "Egress"]),
                "{name}: {}",
                id(policy)
            );
        }
        for pod in objects.pods() {
            let component = &pod.metadata["labels"]["app.kubernetes.io/component"];
            let of_component = policies.iter().filter(|policy| {
                policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == *component
            });
            assert_eq!(of_component.count(), 1, "{name}: {}", pod.owner);
        }
    }
}

#[test]
fn only_those_who_are_named_reach_the_operator_port() {
    let Some(helm) = Helm::find() else { return };
    let callers = |objects: &Objects| -> Vec<Value> {
        items(&objects.get("NetworkPolicy", "herald-gateway")["spec"]["ingress"])
            .iter()
            .filter(|rule| items(&rule["ports"]).iter().any(|port| port["port"] == 7702))
            .flat_map(|rule| items(&rule["from"]).to_vec())
            .collect()
    };
    for (name, objects) in renderings(&helm) {
        assert_eq!(callers(&objects), Vec::<Value>::new(), "{name}");
        // Whatever the public Service is, this one is for the cluster alone, and no route leads to it.
        let service = &objects.get("Service", "herald-operator")["spec"];
        assert_eq!(service["type"], Value::Null, "{name}");
        for kind in ["Ingress", "GRPCRoute"] {
            for route in objects.of_kind(kind) {
                assert!(
                    !route.to_string().contains("herald-operator"),
                    "{name}: {}",
                    id(route)
                );
            }
        }
    }
    let peer = json!({"podSelector": {"matchLabels": {"app": "ops"}}});
    let values = format!("networkPolicy: {{operator: {{from: [{peer}]}}}}\nservice: {{type: LoadBalancer}}");
    let objects = helm.objects(&Input::values(values));
    assert_eq!(callers(&objects), [peer]);
    assert_eq!(
        objects.get("Service", "herald-operator")["spec"]["type"],
        Value::Null
    );
}

/// Herald refuses to listen where others reach it while calls need no credentials, unless it is told to.
#[test]
fn every_pod_that_others_call_may_start() {
    let Some(helm) = Helm::find() else { return };
    for (name, objects) in renderings(&helm) {
        for pod in objects.pods() {
            for container in items(&pod.spec["containers"])
                .iter()
                .filter(|container| container["name"] == "herald")
            {
                let role = container["args"][1].as_str().unwrap();
                let variables = items(&container["env"]);
                let has = |name: &str| {
                    let mut named = variables.iter().filter(|variable| variable["name"] == name);
                    named.any(|variable| variable["value"] == "true")
                };
                let accepts = has("HERALD_INSECURE_NO_AUTH");
                let requires_certificates = variables
                    .iter()
                    .any(|variable| variable["name"] == "HERALD_INTERNAL_TLS__CLIENT_CA_FILE");
                let is_called = ["graph", "analytics", "deadletter", "scaler"].contains(&role);
                let expected = match role {
                    "gateway" => !has("HERALD_AUTH__ENABLED"),
                    _ => is_called && !requires_certificates,
                };
                assert_eq!(accepts, expected, "{name}: {role}");
            }
        }
    }
}

#[test]
fn only_push_reaches_the_internet_and_only_the_secrets_job_the_api_server() {
    let Some(helm) = Helm::find() else { return };
    let objects = helm.objects(&Input::default());
    for policy in objects.of_kind("NetworkPolicy") {
        let anywhere = items(&policy["spec"]["egress"]).iter().any(|rule| {
            items(&rule["to"]).is_empty() || items(&rule["to"]).iter().any(|peer| !peer["ipBlock"].is_null())
        });
        let allowed = ["herald-push", "herald-secrets"].map(|name| format!("NetworkPolicy {name}"));
        assert_eq!(anywhere, allowed.contains(&id(policy)), "{}", id(policy));
    }
    let push = &objects.get("NetworkPolicy", "herald-push")["spec"]["egress"];
    let public = items(push)
        .iter()
        .flat_map(|rule| items(&rule["to"]))
        .find(|peer| peer["ipBlock"]["cidr"] == "0.0.0.0/0");
    let except = &public.unwrap()["ipBlock"]["except"];
    for private in [
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "127.0.0.0/8",
    ] {
        assert!(items(except).contains(&private.into()), "{private}");
    }
}
