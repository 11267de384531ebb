//! toxiproxy: a slow, broken or half-open network.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::free_port;

const START_LIMIT: Duration = Duration::from_secs(20);
const BUILD_LIMIT: Duration = Duration::from_mins(3);
const MODULE: &str = "github.com/Shopify/toxiproxy/v2/cmd/server@v2.5.0";

/// A toxiproxy process, killed when dropped.
pub(crate) struct Toxiproxy {
    api: String,
    client: reqwest::Client,
    _child: Child,
}

/// One way through it.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    url: String,
    address: SocketAddr,
    client: reqwest::Client,
}

/// What is done to the bytes on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Toxic {
    /// Each byte comes so much later.
    Latency { ms: u64, jitter_ms: u64 },
    /// Connections are reset.
    ResetPeer,
    /// Nothing goes through, and nobody is told.
    HalfOpen,
    /// Few bytes a second.
    Bandwidth { kb_per_second: u64 },
}

impl Toxiproxy {
    /// Starts one; `None` where there is no toxiproxy and it can't be built.
    pub(crate) async fn start(dir: &Path) -> Option<Self> {
        let program = locate().await?;
        let port = free_port();
        let log = std::fs::File::create(dir.join("toxiproxy.log")).expect("a log file");
        let child = Command::new(program)
            .args(["-host", "127.0.0.1", "-port", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("toxiproxy starts");
        // reqwest asks for the process's TLS backend even for plain http. It may be there already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::new();
        let api = format!("http://127.0.0.1:{port}");
        let version = format!("{api}/version");
        harness::until("toxiproxy answers", START_LIMIT, || async {
            client.get(&version).send().await.is_ok()
        })
        .await;
        Some(Self {
            api,
            client,
            _child: child,
        })
    }

    /// A way to an address.
    pub(crate) async fn proxy(&self, name: &str, upstream: &str) -> Proxy {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let body =
            json!({"name": name, "listen": address.to_string(), "upstream": upstream, "enabled": true});
        post(&self.client, &format!("{}/proxies", self.api), &body).await;
        Proxy {
            url: format!("{}/proxies/{name}", self.api),
            address,
            client: self.client.clone(),
        }
    }
}

impl Proxy {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Poisons both directions until [`heal`](Self::heal).
    pub(crate) async fn poison(&self, toxic: Toxic) {
        let (kind, attributes) = match toxic {
            Toxic::Latency { ms, jitter_ms } => ("latency", json!({"latency": ms, "jitter": jitter_ms})),
            Toxic::ResetPeer => ("reset_peer", json!({"timeout": 0})),
            Toxic::HalfOpen => ("timeout", json!({"timeout": 0})),
            Toxic::Bandwidth { kb_per_second } => ("bandwidth", json!({"rate": kb_per_second})),
        };
        for stream in ["upstream", "downstream"] {
            let body = json!({"name": stream, "type": kind, "stream": stream, "attributes": attributes});
            post(&self.client, &format!("{}/toxics", self.url), &body).await;
        }
    }

    /// Takes the poison away.
    pub(crate) async fn heal(&self) {
        for stream in ["upstream", "downstream"] {
            let url = format!("{}/toxics/{stream}", self.url);
            let answer = self.client.delete(url).send().await.expect("toxiproxy answers");
            assert!(answer.status().is_success(), "{answer:?}");
        }
    }

    /// Refuses connections and ends those that are there, or goes on.
    pub(crate) async fn enable(&self, enabled: bool) {
        post(&self.client, &self.url, &json!({"enabled": enabled})).await;
    }
}

async fn post(client: &reqwest::Client, url: &str, body: &Value) {
    let answer = client.post(url).body(body.to_string()).send().await;
    let answer = answer.expect("toxiproxy answers");
    assert!(answer.status().is_success(), "{url} {body}: {answer:?}");
}

/// `$TOXIPROXY`, the PATH, the cache, or built by Go into the cache.
async fn locate() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("TOXIPROXY") {
        return Some(path.into());
    }
    let directories = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&directories)
        .flat_map(|dir| [dir.join("toxiproxy"), dir.join("toxiproxy-server")])
        .find(|path| path.is_file());
    if on_path.is_some() {
        return on_path;
    }
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("toxiproxy");
    let program = cache.join("server");
    if !program.is_file() {
        let mut go = Command::new("go");
        go.args(["install", "-trimpath", MODULE])
            .env("GOBIN", &cache)
            .env("CGO_ENABLED", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        // Whatever goes wrong, the program isn't there then.
        let _ = tokio::time::timeout(BUILD_LIMIT, go.status()).await;
    }
    program.is_file().then_some(program)
}
