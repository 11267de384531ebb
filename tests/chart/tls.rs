//! TLS of Herald's ports.

use serde_json::{Value, json};

use crate::helm::{Helm, Input, Objects, items};

fn example(helm: &Helm) -> Objects {
    helm.objects(&Input::examples(&["tls.yaml".to_owned()]))
}

/// The pod of a Deployment.
fn pod<'a>(objects: &'a Objects, role: &str) -> &'a Value {
    &objects.get("Deployment", &format!("herald-{role}"))["spec"]["template"]["spec"]
}

/// The Secrets that a pod mounts, by their volume.
fn secrets(pod: &Value) -> Vec<(&str, &str)> {
    let volumes = items(&pod["volumes"]).iter();
    let mounted = volumes.filter_map(|volume| {
        let secret = volume["secret"]["secretName"].as_str()?;
        Some((volume["name"].as_str()?, secret))
    });
    mounted.collect()
}

/// The value of an environment variable.
fn variable<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let env = items(&pod["containers"][0]["env"]).iter();
    env.filter(|variable| variable["name"] == name)
        .map(|variable| &variable["value"])
        .next()
        .unwrap_or(&Value::Null)
}

#[test]
fn each_pod_has_the_certificates_of_its_ports_alone() {
    let Some(helm) = Helm::find() else { return };
    let objects = example(&helm);
    let (public, internal) = (
        ("tls-public", "herald-tls"),
        ("tls-internal", "herald-internal-tls"),
    );
    assert_eq!(secrets(pod(&objects, "gateway")), [internal, public]);
    for role in [
        "archive",
        "graph",
        "fanout-all",
        "timeline-all",
        "push-all",
        "analytics",
        "deadletter",
        "scaler",
    ] {
        let pod = pod(&objects, role);
        assert_eq!(secrets(pod), [internal], "{role}");
        assert_eq!(variable(pod, "HERALD_TLS__CERT_FILE"), &Value::Null, "{role}");
        assert_eq!(
            variable(pod, "HERALD_INTERNAL_TLS__CLIENT_CA_FILE"),
            "/etc/herald-tls/internal/ca.crt",
            "{role}"
        );
    }
    let gateway = pod(&objects, "gateway");
    assert_eq!(
        variable(gateway, "HERALD_TLS__KEY_FILE"),
        "/etc/herald-tls/public/tls.key"
    );
    let args = &gateway["containers"][0]["args"];
    assert!(
        items(args).contains(&"graph=https://herald-graph.herald.svc.cluster.local:7700".into()),
        "{args}"
    );
}

#[test]
fn the_certificates_have_the_names_by_which_the_ports_are_called() {
    let Some(helm) = Helm::find() else { return };
    let objects = example(&helm);
    let spec = |name: &str| objects.get("Certificate", name)["spec"].clone();
    let (public, internal) = (spec("herald-tls"), spec("herald-internal-tls"));
    assert_eq!(public["secretName"], "herald-tls");
    let names = items(&public["dnsNames"]);
    for name in [
        "herald-gateway.herald.svc.cluster.local",
        "herald-operator.herald.svc",
        "herald.example.org",
    ] {
        assert!(names.contains(&name.into()), "{names:?}");
    }
    let names = items(&internal["dnsNames"]);
    for role in ["graph", "analytics", "deadletter", "scaler"] {
        let name = format!("herald-{role}.herald.svc.cluster.local");
        assert!(names.contains(&name.into()), "{names:?}");
    }
    assert_eq!(
        internal["usages"],
        json!(["digital signature", "server auth", "client auth"])
    );
}

#[test]
fn the_probes_ask_the_plain_port_where_grpc_has_tls() {
    let Some(helm) = Helm::find() else { return };
    let probes = |objects: &Objects, role: &str| {
        let container = pod(objects, role)["containers"][0].clone();
        ["startupProbe", "readinessProbe", "livenessProbe"].map(|probe| {
            let probe = &container[probe];
            assert!(probe["grpc"].is_null() || probe["httpGet"].is_null());
            probe["httpGet"]["path"].as_str().unwrap_or_default().to_owned()
        })
    };
    let http = ["/healthz", "/readyz", "/healthz"];
    let both = example(&helm);
    let public = helm.objects(&Input::values("tls: {enabled: true, existingSecret: mine}"));
    assert_eq!(
        (probes(&both, "gateway"), probes(&both, "graph")),
        (http.map(Into::into), http.map(Into::into))
    );
    assert_eq!(probes(&public, "gateway"), http);
    assert_eq!(probes(&public, "graph"), ["", "", ""]);
    assert_eq!(secrets(pod(&public, "gateway")), [("tls-public", "mine")]);
    assert_eq!(public.of_kind("Certificate").count(), 0);
}

#[test]
fn keda_shows_the_scaler_the_certificate_of_the_roles() {
    let Some(helm) = Helm::find() else { return };
    let objects = example(&helm);
    let authentication = objects.get("TriggerAuthentication", "herald-scaler");
    let secret = |parameter: &str, key: &str| json!({"parameter": parameter, "name": "herald-internal-tls", "key": key});
    assert_eq!(
        authentication["spec"]["secretTargetRef"],
        json!([
            secret("caCert", "ca.crt"),
            secret("tlsClientCert", "tls.crt"),
            secret("tlsClientKey", "tls.key")
        ])
    );
    for scaled in objects.of_kind("ScaledObject") {
        for trigger in items(&scaled["spec"]["triggers"]) {
            assert_eq!(
                trigger["authenticationRef"],
                json!({"name": "herald-scaler"}),
                "{trigger}"
            );
        }
    }
}

#[test]
fn the_test_pod_has_the_authority_and_no_key() {
    let Some(helm) = Helm::find() else { return };
    let objects = example(&helm);
    let pod = &objects.get("Pod", "herald-test")["spec"];
    assert_eq!(variable(pod, "HERALD_CA_FILE"), "/etc/herald-tls/public/ca.crt");
    let volumes = items(&pod["volumes"]).iter();
    let secret = volumes
        .filter(|volume| volume["name"] == "tls-public")
        .map(|volume| &volume["secret"]["items"]);
    assert_eq!(
        secret.collect::<Vec<_>>(),
        [&json!([{"key": "ca.crt", "path": "ca.crt"}])]
    );
}

#[test]
fn the_notes_call_the_ports_as_they_are_served() {
    let Some(helm) = Helm::find() else { return };
    let notes = |values: &str| {
        let arguments = [
            "--name-template=shop",
            "--namespace=shop",
            "--dry-run=client",
            "--set",
            values,
        ];
        let printed = helm.run("install", &arguments);
        printed.split_once("NOTES:").unwrap().1.to_owned()
    };
    let plain = notes("tls.enabled=false");
    assert!(
        !plain.contains("https://") && !plain.contains("HERALD_CA_FILE"),
        "{plain}"
    );
    let secure = notes("tls.enabled=true,tls.existingSecret=certificate");
    for part in [
        "get secret certificate ",
        "HERALD_SERVER=https://shop-herald-gateway:7700",
        "HERALD_OPERATOR_SERVER=https://shop-herald-operator:7702",
        "HERALD_CA_FILE=ca.crt",
    ] {
        assert!(secure.contains(part), "{part} is missing in {secure}");
    }
    assert!(!secure.contains("HERALD_CERT_FILE"), "{secure}");
    let with_clients = notes("tls.enabled=true,tls.existingSecret=certificate,tls.clientCaSecret=clients");
    assert!(
        with_clients.contains("HERALD_CERT_FILE=client.crt"),
        "{with_clients}"
    );
}
