//! What the chart's templates repeat of Herald's own configuration must be the same there.

use std::{collections::BTreeSet, fs, process::Command};

use herald_mesh::{ConsumerPolicies, ConsumerPolicy, StreamLimits, Topology, TopologyConfig};
use serde_json::{Value, json};

use crate::helm::{Helm, Input, Objects, chart, items};

/// The YAML in a template: the text of a `define`.
fn table(file: &str, name: &str) -> Value {
    let text = fs::read_to_string(chart().join("templates").join(file)).unwrap();
    let (_, rest) = text
        .split_once(&format!("{{{{- define \"{name}\" -}}}}\n"))
        .unwrap();
    let (body, _) = rest.split_once("{{- end }}").unwrap();
    Objects::parse(body).0.remove(0)
}

#[test]
fn the_retention_is_that_of_herald() {
    let config = TopologyConfig::default();
    let stream = |limits: StreamLimits, consumers: &[&str]| json!({"age_seconds_max": limits.age_seconds_max, "bytes_max": limits.bytes_max, "consumers": consumers});
    let consumer = |policy: ConsumerPolicy| json!({"attempts_max": policy.attempts_max, "ack_wait_seconds": policy.ack_wait_seconds, "delay_ms_max": policy.retry.delay_ms_max});
    let ConsumerPolicies {
        archive,
        analytics,
        fanout,
        slice,
        timeline,
        push,
        later,
        redrive,
        deadletter,
    } = config.consumers;
    let expected = json!({
        "streams": {
            "posts": stream(config.posts, &["archive", "analytics", "fanout"]),
            "slices": stream(config.slices, &["slice"]),
            "timeline": stream(config.timeline, &["timeline"]),
            "push": stream(config.push, &["push"]),
            "events": stream(config.events, &["analytics"]),
            "later": stream(config.later, &["later"]),
            "advisories": stream(config.advisories, &["deadletter"]),
            "dlq": stream(config.dlq, &["deadletter"]),
            "redrive": stream(config.redrive, &["redrive"]),
        },
        "consumers": {
            "archive": consumer(archive),
            "analytics": consumer(analytics),
            "fanout": consumer(fanout),
            "slice": consumer(slice),
            "timeline": consumer(timeline),
            "push": consumer(push),
            "later": consumer(later),
            "redrive": consumer(redrive),
            "deadletter": consumer(deadletter),
        },
    });
    assert_eq!(table("_validate.tpl", "herald.topologyDefaults"), expected);
}

#[test]
fn workers_are_scaled_by_all_consumers_that_have_work_for_them() {
    let topology = Topology::new(&TopologyConfig::default()).unwrap();
    let table = table("_workloads.tpl", "herald.consumers");
    let mut scaled = BTreeSet::new();
    for role in table.as_object().unwrap().values() {
        let pair = |entry: &Value, lane: &str| {
            let text = |key: &str| entry[key].as_str().unwrap().to_owned();
            (text("stream"), text("consumer") + lane)
        };
        scaled.extend(items(&role["all"]).iter().map(|entry| pair(entry, "")));
        for lane in ["-high", "-normal", "-low"] {
            scaled.extend(items(&role["lanes"]).iter().map(|entry| pair(entry, lane)));
        }
    }
    // Two processes of the dead-letter role are for availability, not for work.
    let consumers = topology.consumers.iter();
    let expected: BTreeSet<_> = consumers
        .filter(|consumer| !["ADVISORIES", "DLQ"].contains(&consumer.stream.as_str()))
        .map(|consumer| (consumer.stream.clone(), consumer.name.clone()))
        .collect();
    assert_eq!(scaled, expected);
}

#[test]
fn nats_has_the_permissions_that_herald_prints() {
    let print = Command::new(env!("CARGO_BIN_EXE_herald-under-test"))
        .args(["topology", "permissions"])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&print.stderr);
    assert!(print.status.success(), "{error}");
    let file = fs::read_to_string(chart().join("files/nats-authorization.conf")).unwrap();
    assert!(
        file == String::from_utf8(print.stdout).unwrap(),
        "helm/herald/files/nats-authorization.conf is old: run `cargo xtask render`"
    );
}

#[test]
fn nats_has_the_public_keys_of_the_users_in_its_configuration() {
    let Some(helm) = Helm::find() else { return };
    let objects = helm.objects(&Input::default());
    let config = objects.get("ConfigMap", "herald-nats")["data"]["authorization.conf"]
        .as_str()
        .unwrap();
    let used = config.split('$').skip(1).filter_map(|rest| {
        let name = rest
            .split(|letter: char| !letter.is_ascii_uppercase() && letter != '_')
            .next()?;
        name.starts_with("NATS_NKEY_").then(|| name.to_owned())
    });
    let used: BTreeSet<String> = used.collect();
    let env = &objects.get("StatefulSet", "herald-nats")["spec"]["template"]["spec"]["containers"][0]["env"];
    let names = items(env)
        .iter()
        .map(|variable| variable["name"].as_str().unwrap().to_owned());
    let given: BTreeSet<String> = names.filter(|name| name.starts_with("NATS_NKEY_")).collect();
    assert_eq!(given, used);
    assert_eq!(used.len(), 10, "{used:?}");
    let spec = objects.get("ConfigMap", "herald-secrets")["data"]["spec.json"]
        .as_str()
        .unwrap();
    let spec: Value = serde_json::from_str(spec).unwrap();
    let users = items(&spec["secrets"])
        .iter()
        .find(|secret| secret["name"] == "herald-nats-users");
    for name in used {
        let made = items(&users.unwrap()["entries"])
            .iter()
            .find(|entry| entry["key"] == *name);
        assert_eq!(made.unwrap()["kind"], "nkey-public", "{name}");
    }
}

#[test]
fn herald_accepts_the_configuration_file() {
    let Some(helm) = Helm::find() else { return };
    for (name, input) in crate::golden::cases() {
        let objects = helm.objects(&input);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("herald.toml");
        let text = objects.get("ConfigMap", "herald")["data"]["herald.toml"]
            .as_str()
            .unwrap();
        fs::write(&file, text).unwrap();
        let check = Command::new(env!("CARGO_BIN_EXE_herald-under-test"))
            .args(["config", "check", "--roles", "gateway,timeline", "--config"])
            .arg(&file)
            .args([
                "--peer",
                "graph=http://a:7700",
                "--peer",
                "analytics=http://b:7700",
                "--peer",
                "deadletter=http://c:7700",
            ])
            .env("HERALD_NATS__URL", "nats://nats:4222")
            .env("HERALD_STORE__URL", "postgres://herald@postgres:5432/herald")
            .env("HERALD_TIMELINES__URL", "redis://redis:6379")
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&check.stderr);
        // The files of certificates are in the pods alone.
        assert!(
            check.status.success() || error.contains("/etc/herald-tls/"),
            "{name}: {error}\n{text}"
        );
    }
}

#[test]
fn settings_of_any_type_reach_the_configuration_file() {
    let Some(helm) = Helm::find() else { return };
    let values = "config:\n  topology: {push: {bytes_max: 7516192768}}\n  gateway: {cors_origins: [\"https://a.example\"], heartbeat_ms: 20000}\n  graph: {backfill: false}\n";
    let objects = helm.objects(&Input::values(format!(
        "{values}nats: {{maxFileStore: 20Gi, storage: {{size: 20Gi}}}}"
    )));
    let text = objects.get("ConfigMap", "herald")["data"]["herald.toml"]
        .as_str()
        .unwrap();
    for line in [
        "topology.push.bytes_max = 7516192768",
        "gateway.cors_origins = [\"https://a.example\"]",
        "gateway.heartbeat_ms = 20000",
        "graph.backfill = false",
    ] {
        assert!(text.lines().any(|has| has == line), "{line} is missing in {text}");
    }
}
