//! `herald secrets`, against a fake API server of Kubernetes.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::{Path as UrlPath, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::run::{CommandResult, herald};

const SPEC: &str = r#"{"namespace":"ns","labels":{"app":"herald"},"annotations":{"keep":"yes"},"secrets":[
  {"name":"r-nats-users","entries":[
    {"key":"NATS_NKEY_PUSH","kind":"nkey-public","of":{"secret":"r-nats-push","key":"seed"}}]},
  {"name":"r-nats-push","entries":[{"key":"seed","kind":"nkey"}]},
  {"name":"r-postgresql","entries":[{"key":"password","kind":"password"},{"key":"admin","kind":"password"}]},
  {"name":"r-vapid","entries":[{"key":"private-key","kind":"vapid"}]}]}"#;

/// A Secret that the server has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Secret {
    version: u64,
    data: BTreeMap<String, String>,
    metadata: Value,
}

/// What the server has, and how it fails.
#[derive(Debug, Default)]
struct Cluster {
    secrets: BTreeMap<String, Secret>,
    /// Answers to the next requests, instead of theirs.
    faults: VecDeque<StatusCode>,
    /// The right that the caller lacks.
    forbidden: Option<&'static str>,
    /// Another writer comes after this number of further reads.
    touched: u32,
    requests: Vec<String>,
}

type Shared = Arc<Mutex<Cluster>>;

/// A running server; it stops with the test's runtime.
struct Server {
    cluster: Shared,
    url: String,
    spec: tempfile::NamedTempFile,
}

fn status(code: StatusCode, message: &str) -> Response {
    let body = json!({"kind": "Status", "code": code.as_u16(), "message": message});
    (code, body.to_string()).into_response()
}

fn secret(name: &str, secret: &Secret) -> Response {
    let mut metadata = secret.metadata.clone();
    metadata["name"] = name.into();
    metadata["resourceVersion"] = secret.version.to_string().into();
    json!({"kind": "Secret", "metadata": metadata, "data": secret.data})
        .to_string()
        .into_response()
}

impl Cluster {
    /// The fault or refusal of this request, if any.
    fn refuse(&mut self, verb: &'static str, name: &str) -> Option<Response> {
        self.requests.push(format!("{verb} {name}"));
        if let Some(fault) = self.faults.pop_front() {
            return Some(status(fault, "out of order"));
        }
        (self.forbidden == Some(verb)).then(|| {
            let message = format!("secrets is forbidden: cannot {verb} resource secrets");
            status(StatusCode::FORBIDDEN, &message)
        })
    }

    fn set(&mut self, name: &str, patch: &Value) {
        let version = self
            .secrets
            .values()
            .map(|secret| secret.version)
            .max()
            .unwrap_or(0)
            + 1;
        let secret = self.secrets.entry(name.into()).or_default();
        secret.version = version;
        for (key, value) in patch["data"].as_object().unwrap() {
            let value = value.as_str().unwrap();
            secret.data.insert(key.clone(), value.to_owned());
        }
    }
}

async fn create(State(cluster): State<Shared>, body: Bytes) -> Response {
    let mut cluster = cluster.lock().unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let name = body["metadata"]["name"].as_str().unwrap();
    if let Some(refusal) = cluster.refuse("create", name) {
        return refusal;
    }
    if cluster.secrets.contains_key(name) {
        return status(StatusCode::CONFLICT, "already exists");
    }
    cluster.set(name, &body);
    cluster.secrets.get_mut(name).unwrap().metadata = body["metadata"].clone();
    secret(name, &cluster.secrets[name])
}

async fn one(
    State(cluster): State<Shared>,
    UrlPath(name): UrlPath<String>,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut cluster = cluster.lock().unwrap();
    let verb = if method == Method::GET { "get" } else { "patch" };
    if let Some(refusal) = cluster.refuse(verb, &name) {
        return refusal;
    }
    let found = cluster.secrets.get(&name).cloned();
    if method == Method::GET {
        if cluster.touched > 0 {
            cluster.touched -= 1;
            let other = json!({"data": {"other": BASE64_STANDARD.encode("mine")}});
            cluster.set(&name, &other);
        }
        return match found {
            Some(found) => secret(&name, &found),
            None => status(StatusCode::NOT_FOUND, "not found"),
        };
    }
    assert_eq!(headers[header::CONTENT_TYPE], "application/merge-patch+json");
    let patch: Value = serde_json::from_slice(&body).unwrap();
    let found = found.unwrap();
    let version = patch["metadata"]["resourceVersion"].as_str().unwrap();
    if version.parse() != Ok(found.version) {
        return status(StatusCode::CONFLICT, "the object has been modified");
    }
    cluster.set(&name, &patch);
    secret(&name, &cluster.secrets[&name])
}

impl Server {
    async fn start() -> Self {
        let cluster = Shared::default();
        let secrets = "/api/v1/namespaces/ns/secrets";
        let router = Router::new()
            .route(
                secrets,
                get(|| async { StatusCode::METHOD_NOT_ALLOWED }).post(create),
            )
            .route(&format!("{secrets}/{{name}}"), any(one))
            .with_state(cluster.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let spec = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(spec.path(), SPEC).unwrap();
        Self { cluster, url, spec }
    }

    async fn ensure(&self) -> CommandResult {
        ensure_at(&self.url, self.spec.path()).await
    }

    fn set(&self, change: impl FnOnce(&mut Cluster)) {
        change(&mut self.cluster.lock().unwrap());
    }

    /// The decoded value of a key.
    fn value(&self, name: &str, key: &str) -> String {
        let value = self.cluster.lock().unwrap().secrets[name].data[key].clone();
        String::from_utf8(BASE64_STANDARD.decode(value).unwrap()).unwrap()
    }

    fn secrets(&self) -> BTreeMap<String, Secret> {
        self.cluster.lock().unwrap().secrets.clone()
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.cluster.lock().unwrap().requests)
    }
}

async fn ensure_at(url: &str, spec: &Path) -> CommandResult {
    let spec = spec.to_str().unwrap();
    let arguments = [
        "secrets",
        "ensure",
        "--spec",
        spec,
        "--api-server",
        url,
        "--output",
        "json",
    ];
    let limit = ["--timeout-seconds", "20"];
    herald("http://127.0.0.1:1", &[&arguments[..], &limit[..]].concat()).await
}

/// What was done, by Secret.
fn changes(result: &CommandResult) -> BTreeMap<String, String> {
    let json = result.json();
    let secrets = json["secrets"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    secrets
        .iter()
        .map(|secret| (text(&secret["name"]), text(&secret["change"])))
        .collect()
}

#[tokio::test]
async fn absent_secrets_are_created_and_present_ones_kept() {
    let server = Server::start().await;
    let first = server.ensure().await.ok();
    assert!(
        changes(&first).values().all(|change| change == "created"),
        "{first:?}"
    );
    let password = server.value("r-postgresql", "password");
    assert_eq!(password.len(), 32);
    assert_ne!(password, server.value("r-postgresql", "admin"));
    assert_eq!(server.value("r-vapid", "private-key").len(), 43);
    let pair = nkeys::KeyPair::from_seed(&server.value("r-nats-push", "seed")).unwrap();
    assert_eq!(server.value("r-nats-users", "NATS_NKEY_PUSH"), pair.public_key());
    let made = server.secrets();
    assert_eq!(made["r-vapid"].metadata["labels"], json!({"app": "herald"}));
    assert_eq!(made["r-vapid"].metadata["annotations"], json!({"keep": "yes"}));
    // No value is printed.
    for secret in made.values() {
        for key in secret.data.values() {
            let value = String::from_utf8(BASE64_STANDARD.decode(key).unwrap()).unwrap();
            assert!(!format!("{first:?}").contains(&value), "{first:?}");
        }
    }

    let requests = server.requests();
    assert_eq!(requests.len(), 8, "{requests:?}");
    let second = server.ensure().await.ok();
    assert!(
        changes(&second).values().all(|change| change == "unchanged"),
        "{second:?}"
    );
    assert_eq!(server.secrets(), made);
    assert!(
        server
            .requests()
            .iter()
            .all(|request| request.starts_with("get "))
    );
}

#[tokio::test]
async fn an_absent_key_is_added_and_a_public_key_follows_its_seed() {
    let server = Server::start().await;
    server.ensure().await.ok();
    let before = server.secrets();
    let other = nkeys::KeyPair::new_user();
    server.set(|cluster| {
        let postgresql = cluster.secrets.get_mut("r-postgresql").unwrap();
        postgresql.data.remove("admin");
        postgresql.data.insert("theirs".into(), "dA==".into());
        let seed = BASE64_STANDARD.encode(other.seed().unwrap());
        let push = cluster.secrets.get_mut("r-nats-push").unwrap();
        push.data.insert("seed".into(), seed);
    });
    let result = server.ensure().await.ok();
    let expected = [
        ("r-nats-push", "unchanged"),
        ("r-nats-users", "changed"),
        ("r-postgresql", "changed"),
        ("r-vapid", "unchanged"),
    ];
    let expected = expected.map(|(name, change)| (name.to_owned(), change.to_owned()));
    assert_eq!(changes(&result), expected.into());
    assert_eq!(server.value("r-nats-users", "NATS_NKEY_PUSH"), other.public_key());
    assert_eq!(server.value("r-postgresql", "admin").len(), 32);
    let after = server.secrets();
    let kept = |secrets: &BTreeMap<String, Secret>| secrets["r-postgresql"].data["password"].clone();
    assert_eq!(kept(&after), kept(&before));
    assert_eq!(after["r-postgresql"].data["theirs"], "dA==");

    server.set(|cluster| {
        let push = cluster.secrets.get_mut("r-nats-push").unwrap();
        push.data.insert("seed".into(), BASE64_STANDARD.encode("hunter2"));
    });
    let result = server.ensure().await;
    let message = result.error()["message"].to_string();
    assert_eq!(result.code, 1);
    assert!(
        message.contains("secret r-nats-push: key seed is not the seed"),
        "{message}"
    );
    assert!(!message.contains("hunter2"), "{message}");
}

#[tokio::test]
async fn concurrent_runs_end_with_the_same_secrets() {
    let server = Server::start().await;
    let results = join_all((0..6).map(|_| server.ensure())).await;
    let mut created = 0;
    for result in results {
        created += changes(&result.ok())
            .values()
            .filter(|change| *change == "created")
            .count();
    }
    assert_eq!(created, 4, "each secret is created by one of them");
    let pair = nkeys::KeyPair::from_seed(&server.value("r-nats-push", "seed")).unwrap();
    assert_eq!(server.value("r-nats-users", "NATS_NKEY_PUSH"), pair.public_key());

    // A Secret that appears or changes between the read and the write is read again.
    let server = Server::start().await;
    server.set(|cluster| cluster.touched = 2);
    server.ensure().await.ok();
    let requests = server.requests();
    let of_push: Vec<_> = requests
        .iter()
        .filter(|request| request.ends_with("r-nats-push"))
        .collect();
    assert_eq!(
        of_push,
        [
            "get r-nats-push",
            "create r-nats-push",
            "get r-nats-push",
            "patch r-nats-push",
            "get r-nats-push",
            "patch r-nats-push"
        ],
        "{requests:?}"
    );
    assert_eq!(server.value("r-nats-push", "other"), "mine");
}

#[tokio::test]
async fn a_missing_right_is_named() {
    for verb in ["get", "create", "patch"] {
        let server = Server::start().await;
        if verb == "patch" {
            server.ensure().await.ok();
            server.set(|cluster| cluster.secrets.get_mut("r-postgresql").unwrap().data.clear());
        }
        server.set(|cluster| cluster.forbidden = Some(verb));
        let result = server.ensure().await;
        assert_eq!(result.code, 1, "{result:?}");
        let message = result.error()["message"].to_string();
        for part in [
            &format!("may not {verb} secret r-"),
            "namespace ns",
            &format!("`{verb}` on the resource `secrets`"),
        ] {
            assert!(message.contains(part), "{message}");
        }
    }
    let server = Server::start().await;
    server.set(|cluster| cluster.faults = [StatusCode::UNAUTHORIZED].into());
    let result = server.ensure().await;
    assert_eq!(result.code, 1);
    assert!(
        result.error()["message"]
            .to_string()
            .contains("token of the service account")
    );
}

#[tokio::test]
async fn an_api_server_that_is_away_is_waited_for() {
    let server = Server::start().await;
    server.set(|cluster| {
        cluster.faults = [
            StatusCode::SERVICE_UNAVAILABLE,
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::INTERNAL_SERVER_ERROR,
        ]
        .into();
    });
    let result = server.ensure().await.ok();
    assert!(
        changes(&result).values().all(|change| change == "created"),
        "{result:?}"
    );

    // Nobody listens there.
    let url = "http://127.0.0.1:1";
    let spec = server.spec.path().to_str().unwrap();
    let arguments = [
        "secrets",
        "ensure",
        "--spec",
        spec,
        "--api-server",
        url,
        "--output",
        "json",
    ];
    let limit = ["--timeout-seconds", "1"];
    let result = herald("http://127.0.0.1:1", &[&arguments[..], &limit[..]].concat()).await;
    assert_eq!(result.code, 3, "{result:?}");
    // Warnings about the attempts come before.
    let message = result.stderr.lines().last().unwrap();
    assert!(
        message.contains("can't be reached") && message.contains("gave up after 1 s"),
        "{message}"
    );
}

#[tokio::test]
async fn a_wrong_call_is_refused_before_anything_is_sent() {
    let server = Server::start().await;
    std::fs::write(
        server.spec.path(),
        r#"{"namespace":"ns","secrets":[{"name":"A","entries":[]}]}"#,
    )
    .unwrap();
    let result = server.ensure().await;
    assert_eq!(result.code, 2);
    assert!(
        result.error()["message"]
            .to_string()
            .contains("is not a name of Kubernetes")
    );
    std::fs::write(server.spec.path(), SPEC).unwrap();
    let result = ensure_at("http://10.0.0.1:6443", server.spec.path()).await;
    assert_eq!(result.code, 2);
    assert!(result.error()["message"].to_string().contains("must be https://"));
    let spec = server.spec.path().to_str().unwrap();
    let result = herald("http://127.0.0.1:1", &["secrets", "ensure", "--spec", spec]).await;
    assert_eq!(result.code, 2);
    assert!(result.stderr.contains("KUBERNETES_SERVICE_HOST"), "{result:?}");
    assert!(server.requests().is_empty());
}
