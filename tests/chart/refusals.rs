//! Values that contradict each other, that could lose data, or that the cluster lacks something for, are refused with what to change.

use std::fs;

use crate::helm::{Helm, Input, chart};

/// Values, and a part of the sentence that refuses them.
const REFUSED: [(&str, &str); 77] = [
    // Pods would not start.
    (
        "insecureNoAuth: {internal: false}",
        "calls between the roles need no credentials, and insecureNoAuth.internal doesn't accept that",
    ),
    (
        "postgresql: {enabled: false}\nstore: {url: \"postgres://herald@db/herald\", tls: {caSecret: ca}}",
        "store.tls.caSecret is set, and store.url does not ask for a verified server",
    ),
    (
        "postgresql: {enabled: false}\n\
         store: {url: \"postgres://herald@db/herald?sslmode=Require\", tls: {caSecret: ca}}",
        "store.tls.caSecret is set, and store.url does not ask for a verified server",
    ),
    (
        "postgresql: {enabled: false}\n\
         store: {url: \"postgres://herald@db/herald?sslmode=verify-full&ssl-mode=allow\", tls: {caSecret: ca}}",
        "store.tls.caSecret is set, and store.url does not ask for a verified server",
    ),
    (
        "valkey: {enabled: false}\ntimelines: {url: \"redis://valkey:6379\", tls: {caSecret: ca}}",
        "timelines.tls.caSecret is set, and timelines.url begins with redis://, which is without TLS",
    ),
    // TLS without a certificate, or with two.
    (
        "tls: {enabled: true}",
        "tls.enabled needs a certificate: set tls.existingSecret, a Secret with tls.crt and tls.key, or \
         tls.certManager.issuerRef.name",
    ),
    (
        "internalTls: {enabled: true, existingSecret: a, certManager: {issuerRef: {name: b}}}",
        "internalTls.existingSecret and internalTls.certManager.issuerRef both name a certificate",
    ),
    (
        "tls: {clientCaSecret: clients}",
        "tls names a certificate or an authority, and tls.enabled is false",
    ),
    (
        "config: {tls: {cert_file: a}}",
        "config.tls is set by the chart: set tls.",
    ),
    (
        "config: {internal_tls: {cert_file: a}}",
        "config.internal_tls is set by the chart: set internalTls.",
    ),
    // Data would be lost.
    (
        "config: {topology: {push: {age_seconds_max: 600}}}",
        "config.topology.push.age_seconds_max is 600, less than the 30000 s that config.topology.consumers.push.attempts_max (1000)",
    ),
    (
        "config: {topology: {consumers: {deadletter: {attempts_max: 30000}}}}",
        "config.topology.advisories.age_seconds_max is 604800, less than the 900000 s",
    ),
    (
        "deadletter: {replicas: 0}",
        "deadletter.replicas must be at least 1, is 0: without deadletter dead letters would never be recorded",
    ),
    (
        "gateway: {replicas: 0}",
        "gateway.replicas must be at least 1, is 0",
    ),
    (
        "timeline: {replicas: 0}",
        "without timeline-all posts wait in their streams until these remove them",
    ),
    (
        "push: {lanes: [{name: a, lanes: [high]}, {name: b, lanes: [low]}]}",
        "push.lanes has no entry for the lane normal: posts of that lane would never be delivered",
    ),
    (
        "analytics: {replicas: 2}",
        "all analytics pods need the same directory, because each deletes the uncounted files of one that died",
    ),
    (
        "analytics: {replicas: 2, storage: {type: persistentVolumeClaim}}",
        "Set analytics.storage.type to persistentVolumeClaim with accessModes [ReadWriteMany], or analytics.replicas to 1",
    ),
    (
        "autoscaling: {mode: hpa}\nanalytics: {autoscaling: {enabled: true}}",
        "analytics.autoscaling.enabled needs a directory that all analytics pods share",
    ),
    (
        "timeline: {terminationGracePeriodSeconds: 30}",
        "timeline.terminationGracePeriodSeconds must be at least 38, is 30",
    ),
    (
        "shutdown: {seconds: 25, delaySeconds: 10}",
        "shutdown.delaySeconds must be at most a quarter of shutdown.seconds (25), is 10",
    ),
    (
        "nats: {maxFileStore: 20Gi}",
        "nats.maxFileStore (20Gi) is more than nats.storage.size (12Gi)",
    ),
    (
        "nats: {maxFileStore: 5Gi}",
        "the streams reserve 10368 MiB, and nats.maxFileStore is 5120 MiB",
    ),
    // Contradictions.
    (
        "config: {topology: {replicas: 3}}",
        "config.topology.replicas is 3, and nats.replicas gives only 1 server",
    ),
    ("nats: {replicas: 2}", "nats.replicas must be 1 or 3, is 2"),
    (
        "postgresql: {enabled: false}",
        "The embedded store belongs to a single process and can't have replicas",
    ),
    (
        "valkey: {enabled: false}",
        "set timelines.url or timelines.existingSecret",
    ),
    (
        "nats: {enabled: false}",
        "set nats.url, or nats.auth.existingSecret and nats.auth.secretKeys.url",
    ),
    (
        "store: {url: \"postgres://herald@db/herald\"}",
        "set postgresql.enabled to false to use that one",
    ),
    (
        "nats: {url: \"nats://nats:4222\"}",
        "set nats.enabled to false to use that one",
    ),
    (
        "nats: {auth: {existingSecret: a}}",
        "nats.auth is for a NATS of your own, and nats.enabled installs one",
    ),
    (
        "nats: {enabled: false, url: \"nats://nats:4222\", auth: {existingSecret: a, secretKeys: {token: token}}}",
        "nats.auth.secretKeys has keys for nkeySeed and token: a connection has one kind of credentials",
    ),
    (
        "postgresql: {enabled: false}\nstore: {url: \"postgres://herald:hunter2@db/herald\"}",
        "store.url has a password, which everybody who may read a Deployment could read",
    ),
    (
        "postgresql: {maxConnections: 50}",
        "8 pods with 8 connections each can exceed postgresql.maxConnections (50)",
    ),
    (
        "push: {lanes: [{name: a, lanes: [high, normal]}, {name: a, lanes: [low]}]}",
        "push.lanes has two entries named \"a\"",
    ),
    (
        "autoscaling: {mode: hpa}\npush: {autoscaling: {minReplicas: 5}}",
        "push.autoscaling.maxReplicas (4) must be at least 1 and not less than minReplicas (5)",
    ),
    (
        "autoscaling: {mode: hpa}\narchive: {autoscaling: {enabled: true, minReplicas: 0}}",
        "Only fanout, timeline and push can be scaled to zero",
    ),
    (
        "autoscaling: {mode: hpa}\nfanout: {autoscaling: {pendingPerReplica: {slice: 0}}}",
        "fanout.autoscaling.pendingPerReplica.slice must be at least 1",
    ),
    (
        "autoscaling: {mode: keda}\nnats: {enabled: false, url: \"nats://nats:4222\"}",
        "autoscaling by pending messages needs nats.monitoring.endpoint",
    ),
    (
        "grpcRoute: {enabled: true}",
        "grpcRoute.parentRefs must name the Gateway",
    ),
    (
        "ingress: {enabled: true}",
        "ingress.hosts must have at least one host name",
    ),
    (
        "ingress: {enabled: true, hosts: [a.example]}",
        "ingress.tls must be set",
    ),
    // What would be refused by the API server, or fail at run time.
    (
        "postgresql: {enabled: false}\nstore: {url: \"postgres://herald:p$ss@db/herald\"}",
        "store.url has a password",
    ),
    (
        "postgresql: {enabled: false}\nstore: {url: \"postgres://herald@db/herald?password=x\"}",
        "store.url has a password",
    ),
    (
        "nats: {enabled: false, url: \"nats://token@nats:4222\"}",
        "nats.url has a password",
    ),
    (
        "postgresql: {enabled: false}\nstore: {url: \"postgres://herald@db/herald\", existingSecret: a}",
        "store.url is set, so store.existingSecret is not read",
    ),
    (
        "postgresql: {enabled: false}\nstore: {url: \"postgres://herald:$(STORE_PASSWORD)@db/herald\"}",
        "no Secret is named that has it",
    ),
    (
        "postgresql: {enabled: false}\nstore: {existingSecret: a, secretKeys: {url: \"\"}}",
        "neither store.url nor store.secretKeys.url",
    ),
    (
        "timelines: {tls: {caSecret: a}}",
        "timelines.tls is for a server of your own",
    ),
    (
        "nats: {tls: {required: true}}",
        "nats.tls.required is for a NATS of your own",
    ),
    (
        "nats: {enabled: false, url: \"nats://nats\", auth: {roleSecrets: {gateway: a}}}",
        "nats.auth.roleSecrets has no Secret for archive, which would connect without credentials",
    ),
    (
        "nats: {enabled: false, url: \"nats://nats\", auth: {existingSecret: a, secretKeys: {nkeySeed: \"\"}}}",
        "nats.auth.secretKeys none of the credentials in it",
    ),
    (
        "nats: {enabled: false, url: \"nats://nats\", auth: {existingSecret: a, secretKeys: {nkeySeed: \"\", url: url}}}",
        "nats.url and nats.auth.secretKeys.url are both set",
    ),
    (
        "postgresql: {enabled: false}\nstore: {url: \"postgres://herald@db:6432/herald\"}",
        "store.url has the port 6432, and networkPolicy.store.ports allows only 5432",
    ),
    (
        "tracing: {endpoint: \"https://otel\"}",
        "tracing.endpoint has the port 443, and networkPolicy.tracing.ports allows only 4317",
    ),
    (
        "postgresql: {auth: {passwordKey: other}}",
        "postgresql.auth.passwordKey names a key of postgresql.auth.existingSecret, which is not set",
    ),
    (
        "vapid: {secretKey: other}",
        "vapid.secretKey names a key of vapid.existingSecret, which is not set",
    ),
    (
        "storageKey: {secretKey: other}",
        "storageKey.secretKey names a key of storageKey.existingSecret, which is not set",
    ),
    (
        "auth: {secretKey: other}",
        "auth.secretKey names a key of auth.existingSecret, which is not set",
    ),
    (
        "auth: {enabled: false}",
        "Set auth.enabled, or auth.insecureNoAuth to confirm it",
    ),
    (
        "auth: {insecureNoAuth: true}",
        "auth.enabled and auth.insecureNoAuth are both true",
    ),
    (
        "valkey: {maxMemory: 2gb}",
        "valkey.maxMemory (2gb) must be less than valkey.resources.limits.memory (640Mi)",
    ),
    (
        "service: {externalTrafficPolicy: Local}",
        "service.externalTrafficPolicy is for a Service of type NodePort or LoadBalancer",
    ),
    (
        "pods: {podDisruptionBudget: {maxUnavailable: 0}}",
        "no node with a pod of gateway could be drained",
    ),
    (
        "analytics: {storage: {existingClaim: a}}",
        "analytics.storage.existingClaim is set, and analytics.storage.type is emptyDir",
    ),
    (
        "fullnameOverride: My_App",
        "a Service can't have such a name: set fullnameOverride",
    ),
    ("nameOverride: a b", "can't be the value of a label"),
    (
        "pods: {extraEnv: {HERALD_SHUTDOWN_SECONDS: \"300\"}}",
        "pods.extraEnv.HERALD_SHUTDOWN_SECONDS is a setting that the chart sets: set shutdown.seconds",
    ),
    (
        "gateway: {extraEnv: {HERALD_STORE__URL_FILE: /a}}",
        "gateway.extraEnv.HERALD_STORE__URL_FILE is a setting that the chart sets",
    ),
    (
        "pods: {extraVolumes: [{name: tmp, emptyDir: {}}]}",
        "extraVolumes has the name \"tmp\" twice, or the chart has it too",
    ),
    (
        "patches: [{target: {kind: Deployment, name: herald-gatway}, patch: {}}]",
        "patches[0] is for the Deployment \"herald-gatway\", and these values make none of this name",
    ),
    // What the chart sets itself.
    (
        "gateway: {extraEnv: {HERALD_NATS__URL: \"nats://nats\"}}",
        "gateway.extraEnv.HERALD_NATS__URL is a variable that the chart sets",
    ),
    (
        "config: {store: {url: \"postgres://db/herald\"}}",
        "config.store.url is set by the chart: set store.url or store.existingSecret",
    ),
    (
        "config: {lanes: [high]}",
        "config.lanes is set by the chart: set the lanes of a worker",
    ),
    // Keys of other charts.
    (
        "replicaCount: 3",
        "replicaCount is not a value of this chart: set the replicas of a role, such as gateway.replicas",
    ),
    (
        "redis: {enabled: true}",
        "redis is not a value of this chart: set valkey",
    ),
    ("keda: {enabled: true}", "set autoscaling.mode to keda"),
];

#[test]
fn bad_values_are_refused_with_what_to_change() {
    let Some(helm) = Helm::find() else { return };
    for (values, sentence) in REFUSED {
        let refusal = helm.refusal(&Input::values(values));
        assert!(refusal.contains(sentence), "{values}: {refusal}");
    }
}

/// The chart does not refuse what Herald may accept.
#[test]
fn authorities_are_accepted_with_a_url_that_may_verify() {
    let Some(helm) = Helm::find() else { return };
    for store in [
        "url: \"postgres://herald@db/herald?application_name=a&sslmode=Verify-Full\"",
        "url: \"postgres://herald@db/herald?ssl-mode=disable&sslmode=verify-ca\"",
        "url: \"postgres://herald@db/herald?ssl%2Dmode=verify-full\"",
        "url: \"postgres://herald@db/herald?$(PARAMETERS)\"",
        "existingSecret: store",
    ] {
        let values = format!("postgresql: {{enabled: false}}\nstore: {{{store}, tls: {{caSecret: ca}}}}");
        helm.objects(&Input::values(&values));
    }
    for values in [
        "postgresql: {enabled: false}\nstore: {url: \"postgres://herald@db/herald\", tls: {caSecret: ca}}\n\
         pods: {extraEnv: {PGSSLMODE: verify-full}}",
        "valkey: {enabled: false}\ntimelines: {url: \"rediss://valkey:6379\", tls: {caSecret: ca}}",
        "valkey: {enabled: false}\ntimelines: {existingSecret: timelines, tls: {caSecret: ca}}",
    ] {
        helm.objects(&Input::values(values));
    }
}

#[test]
fn what_the_cluster_lacks_is_named() {
    let Some(helm) = Helm::find() else { return };
    for (values, sentence) in [
        (
            "autoscaling: {mode: keda}",
            "the cluster has no ScaledObjects (keda.sh/v1alpha1): install KEDA first (k8s/addons/README.md), or set \
             autoscaling.mode to none. For `helm template` without a cluster, add --api-versions keda.sh/v1alpha1",
        ),
        (
            "tls: {enabled: true, certManager: {issuerRef: {name: public}}}",
            "the cluster has no Certificate (cert-manager.io/v1)",
        ),
        (
            "grpcRoute: {enabled: true, parentRefs: [{name: public}]}",
            "the cluster has no GRPCRoute (gateway.networking.k8s.io/v1)",
        ),
        (
            "metrics: {podMonitor: {enabled: true}}",
            "the cluster has no PodMonitor (monitoring.coreos.com/v1)",
        ),
        (
            "metrics: {rules: {enabled: true}}",
            "the cluster has no PrometheusRule (monitoring.coreos.com/v1)",
        ),
    ] {
        let bare = Input {
            bare: true,
            ..Input::values(values)
        };
        let refusal = helm.refusal(&bare);
        assert!(refusal.contains(sentence), "{values}: {refusal}");
        helm.objects(&Input::values(values));
    }
}

#[test]
fn unknown_keys_and_wrong_types_are_refused() {
    let Some(helm) = Helm::find() else { return };
    for (values, part) in [
        ("gatway: {replicas: 2}", "gatway"),
        ("gateway: {replica: 2}", "replica"),
        (
            "timeline: {lanes: [{name: a, lanes: [urgent]}]}",
            "/timeline/lanes/0/lanes/0",
        ),
        ("timeline: {autoscaling: {max: 3}}", "max"),
        ("push: {replicas: two}", "/push/replicas"),
        ("image: {digest: latest}", "/image/digest"),
        ("config: {topologi: {}}", "topologi"),
        ("networkPolicy: {nats: {from: []}}", "from"),
        ("patches: [{patch: {}}]", "target"),
        ("autoscaling: {mode: always}", "/autoscaling/mode"),
        // A section whose keys are all comments is null, and null removes its defaults.
        ("gateway:", "gateway"),
        ("pods:", "pods"),
        ("nats: {storage: null}", "storage"),
        // Options that a job doesn't have.
        ("jobs: {probes: {}}", "probes"),
        (
            "patches: [{target: {kind: deployment, name: a}, patch: {}}]",
            "/patches/0/target/kind",
        ),
        (
            "pods: {resources: {limits: {memory: much}}}",
            "/pods/resources/limits/memory",
        ),
        (
            "postgresql: {auth: {existingSecret: a, passwordKey: b c}}",
            "/postgresql/auth/passwordKey",
        ),
    ] {
        let refusal = helm.refusal(&Input::values(values));
        assert!(
            refusal.contains("values don't meet the specifications of the schema"),
            "{values}: {refusal}"
        );
        assert!(refusal.contains(part), "{values}: {refusal}");
    }
}

/// Values that the schema doesn't name could be misspelt without being noticed.
#[test]
fn the_schema_allows_no_additional_properties() {
    let text = fs::read_to_string(chart().join("values.schema.json")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut checked = 0;
    let mut rest = vec![(String::new(), &schema)];
    while let Some((path, value)) = rest.pop() {
        // Others may read further global values; sections of `config` are Herald's own.
        let is_open = path == "/properties/global" || path.starts_with("/properties/config/properties/");
        if !is_open && value["type"] == "object" && value.get("properties").is_some() {
            assert_eq!(value["additionalProperties"], false, "{path}");
            checked += 1;
        }
        if let Some(fields) = value.as_object() {
            rest.extend(fields.iter().map(|(key, value)| (format!("{path}/{key}"), value)));
        }
    }
    assert!(checked > 30, "{checked}");
}
