//! Network faults with toxiproxy: latency, bandwidth limits, resets and half-open connections.

use std::{
    fs::OpenOptions,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use harness::free_port;
use serde_json::{Value, json};
use tokio::{
    process::{Child, Command},
    sync::Mutex,
};

/// Time limit to remove a toxic from all connections.
const REMOVE_LIMIT: Duration = Duration::from_secs(10);
const START_LIMIT: Duration = Duration::from_secs(20);
const BUILD_LIMIT: Duration = Duration::from_mins(3);
const MODULE: &str = "github.com/Shopify/toxiproxy/v2/cmd/server@v2.5.0";

/// Starts proxies.
#[derive(Debug, Clone)]
pub(crate) struct Toxiproxy {
    program: PathBuf,
    dir: PathBuf,
    client: reqwest::Client,
}

/// A proxy with its own toxiproxy process.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    toxiproxy: Toxiproxy,
    name: String,
    upstream: String,
    address: SocketAddr,
    process: Arc<Mutex<Process>>,
}

/// A toxiproxy process. Drop kills it.
#[derive(Debug)]
struct Process {
    url: String,
    child: Child,
}

/// A network fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Toxic {
    /// Data is delayed.
    Latency { ms: u64, jitter_ms: u64 },
    /// Connections are reset.
    ResetPeer,
    /// Data is dropped without closing the connection.
    HalfOpen,
    /// The bandwidth is limited.
    Bandwidth { kb_per_second: u64 },
}

impl Toxiproxy {
    /// Finds or builds toxiproxy; `None` if neither is possible.
    pub(crate) async fn find(dir: &Path) -> Option<Self> {
        let program = locate().await?;
        // reqwest needs a TLS provider even for plain HTTP. One may be installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Some(Self {
            program,
            dir: dir.into(),
            client: reqwest::Client::new(),
        })
    }

    /// Starts a proxy to an address.
    pub(crate) async fn proxy(&self, name: &str, upstream: &str) -> Proxy {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        Proxy {
            toxiproxy: self.clone(),
            name: name.into(),
            upstream: upstream.into(),
            address,
            process: Arc::new(Mutex::new(self.start(name, address, upstream).await)),
        }
    }

    async fn start(&self, name: &str, address: SocketAddr, upstream: &str) -> Process {
        let port = free_port();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("toxiproxy.log"))
            .expect("a log file");
        let child = Command::new(&self.program)
            .args(["-host", "127.0.0.1", "-port", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("toxiproxy starts");
        let api = format!("http://127.0.0.1:{port}");
        let version = format!("{api}/version");
        harness::until("toxiproxy answers", START_LIMIT, || async {
            self.client.get(&version).send().await.is_ok()
        })
        .await;
        let body =
            json!({"name": name, "listen": address.to_string(), "upstream": upstream, "enabled": true});
        post(&self.client, &format!("{api}/proxies"), &body).await;
        Process {
            url: format!("{api}/proxies/{name}"),
            child,
        }
    }
}

impl Proxy {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds a toxic to both directions until [`remove_toxic`](Self::remove_toxic).
    pub(crate) async fn add_toxic(&self, toxic: Toxic) {
        let (kind, attributes) = match toxic {
            Toxic::Latency { ms, jitter_ms } => ("latency", json!({"latency": ms, "jitter": jitter_ms})),
            Toxic::ResetPeer => ("reset_peer", json!({"timeout": 0})),
            Toxic::HalfOpen => ("timeout", json!({"timeout": 0})),
            Toxic::Bandwidth { kb_per_second } => ("bandwidth", json!({"rate": kb_per_second})),
        };
        let url = format!("{}/toxics", self.process.lock().await.url);
        for stream in ["upstream", "downstream"] {
            let body = json!({"name": stream, "type": kind, "stream": stream, "attributes": attributes});
            post(&self.toxiproxy.client, &url, &body).await;
        }
    }

    /// Removes the toxic from both directions.
    pub(crate) async fn remove_toxic(&self) {
        let mut process = self.process.lock().await;
        for stream in ["upstream", "downstream"] {
            let url = format!("{}/toxics/{stream}", process.url);
            let taken = self.toxiproxy.client.delete(url).send();
            if let Ok(answer) = tokio::time::timeout(REMOVE_LIMIT, taken).await {
                let answer = answer.expect("toxiproxy answers");
                assert!(answer.status().is_success(), "{answer:?}");
                continue;
            }
            // toxiproxy can hang if a connection closes meanwhile, and then accepts no others: replace the process.
            process.child.kill().await.expect("toxiproxy can be killed");
            *process = self
                .toxiproxy
                .start(&self.name, self.address, &self.upstream)
                .await;
            return;
        }
    }

    /// `false` refuses new connections and closes existing ones; `true` accepts connections again.
    pub(crate) async fn set_enabled(&self, enabled: bool) {
        let process = self.process.lock().await;
        post(&self.toxiproxy.client, &process.url, &json!({"enabled": enabled})).await;
    }
}

async fn post(client: &reqwest::Client, url: &str, body: &Value) {
    let answer = client.post(url).body(body.to_string()).send().await;
    let answer = answer.expect("toxiproxy answers");
    assert!(answer.status().is_success(), "{url} {body}: {answer:?}");
}

/// Looks for toxiproxy in `$TOXIPROXY`, the PATH and the cache; otherwise builds it with Go into the cache.
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
        // A failed build leaves no program.
        let _ = tokio::time::timeout(BUILD_LIMIT, go.status()).await;
    }
    program.is_file().then_some(program)
}
