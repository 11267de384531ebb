//! The server under test: a `herald up` of its own, in a process of its own.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use herald_cli::failure::Failure;
use herald_runtime::telemetry::LOG_VARIABLES;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    task::JoinHandle,
};

/// A start that takes longer than this has failed; it includes fetching nats-server where there is none.
const START_LIMIT: Duration = Duration::from_mins(5);
/// How long a drain may take.
const STOP_LIMIT: Duration = Duration::from_mins(1);
/// How often memory is looked at.
const MEMORY_INTERVAL: Duration = Duration::from_millis(100);

/// What `herald up` says when it is ready.
#[derive(Debug, Deserialize)]
struct Ready {
    event: String,
    grpc: String,
    http: String,
    herald_pid: u32,
    nats: String,
    nats_pid: Option<u32>,
}

/// A running server and what it takes.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    grpc: String,
    http: String,
    nats: String,
    pids: Vec<u32>,
    data_dir: PathBuf,
    memory: JoinHandle<()>,
    rss_kb_max: tokio::sync::watch::Receiver<u64>,
    /// From the start of the process to `ready`.
    pub(super) ready_after: Duration,
}

impl Server {
    /// Starts this very program's `up` and waits until it is ready. `options` are passed on; `quiet`: warnings and errors are all
    /// that it logs, unless the environment says more.
    pub(super) async fn start(data_dir: &Path, options: &[String], quiet: bool) -> Result<Self, Failure> {
        let program = std::env::current_exe()
            .map_err(|error| Failure::io("this program's own path can't be found", &error))?;
        let started = tokio::time::Instant::now();
        let mut up = Command::new(program);
        if quiet && LOG_VARIABLES.iter().all(|name| std::env::var_os(name).is_none()) {
            up.env(LOG_VARIABLES[0], "warn");
        }
        let mut child = up
            .args([
                "up",
                "--output",
                "json",
                "--grpc",
                "127.0.0.1:0",
                "--http",
                "127.0.0.1:0",
            ])
            .args(["--nats-port", "0", "--allow-private-endpoints", "--data-dir"])
            .arg(data_dir)
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // A Ctrl-C at the terminal is for the benchmark, which then ends its server.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Failure::io("`herald up` can't be started", &error))?;
        let stdout = child
            .stdout
            .take()
            .ok_or_else(|| Failure::failed("`herald up` has no output".to_owned()))?;
        let ready = tokio::time::timeout(START_LIMIT, ready(stdout))
            .await
            .map_err(|_| Failure::failed(format!("`herald up` was not ready after {START_LIMIT:?}")))??;
        let pids: Vec<u32> = [Some(ready.herald_pid), ready.nats_pid]
            .into_iter()
            .flatten()
            .collect();
        let (sender, rss_kb_max) = tokio::sync::watch::channel(0);
        let memory = tokio::spawn(watch_memory(pids.clone(), sender));
        Ok(Self {
            child,
            grpc: format!("http://{}", ready.grpc),
            http: format!("http://{}", ready.http),
            nats: ready.nats,
            pids,
            data_dir: data_dir.into(),
            memory,
            rss_kb_max,
            ready_after: started.elapsed(),
        })
    }

    /// Its gRPC address.
    pub(super) fn url(&self) -> &str {
        &self.grpc
    }

    /// Where its nats-server listens.
    pub(super) fn nats(&self) -> &str {
        &self.nats
    }

    /// What `/metrics` says of a counter without labels.
    pub(super) async fn counter(&self, name: &str) -> Result<u64, Failure> {
        let url = format!("{}/metrics", self.http);
        let text = get(&url).await?;
        counter(&text, name).ok_or_else(|| Failure::failed(format!("{url} says nothing of {name}")))
    }

    /// The memory that herald and nats-server hold together, MB.
    pub(super) fn rss_mb(&self) -> f64 {
        self.pids.iter().map(|pid| rss_kb(*pid)).sum::<u64>() as f64 / 1_000.0
    }

    /// The most memory that herald and nats-server held together at one moment, MB.
    pub(super) fn rss_mb_max(&self) -> f64 {
        *self.rss_kb_max.borrow() as f64 / 1_000.0
    }

    /// What its data directory takes, MB.
    pub(super) fn disk_mb(&self) -> f64 {
        disk_bytes(&self.data_dir) as f64 / 1e6
    }

    /// Ends it as Ctrl-C would, and waits until it has drained.
    pub(super) async fn stop(mut self) -> Result<(), Failure> {
        self.memory.abort();
        let pid = self
            .child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(rustix::process::Pid::from_raw)
            .ok_or_else(|| Failure::failed("`herald up` ended before it was told to".to_owned()))?;
        rustix::process::kill_process(pid, rustix::process::Signal::INT)
            .map_err(|error| Failure::io("`herald up` can't be signalled", &error.into()))?;
        let status = tokio::time::timeout(STOP_LIMIT, self.child.wait())
            .await
            .map_err(|_| Failure::failed(format!("`herald up` has not drained after {STOP_LIMIT:?}")))?
            .map_err(|error| Failure::io("`herald up` can't be waited for", &error))?;
        if status.success() {
            Ok(())
        } else {
            Err(Failure::failed(format!("`herald up` ended with {status}")))
        }
    }
}

/// Reads lines until the one that says ready; goes on reading in the background, so that the pipe never fills.
async fn ready(stdout: tokio::process::ChildStdout) -> Result<Ready, Failure> {
    let mut lines = BufReader::new(stdout).lines();
    loop {
        let line = lines
            .next_line()
            .await
            .map_err(|error| Failure::io("the output of `herald up` can't be read", &error))?
            .ok_or_else(|| {
                Failure::failed("`herald up` ended before it was ready; see its messages above".to_owned())
            })?;
        if let Ok(ready) = serde_json::from_str::<Ready>(&line)
            && ready.event == "ready"
        {
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok(ready);
        }
    }
}

async fn get(url: &str) -> Result<String, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::failed(format!("{url} can't be read: {error}"));
    let uri = url.parse::<http::Uri>().map_err(|error| failed(&error))?;
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<&[u8]>>();
    let answer = client.get(uri).await.map_err(|error| failed(&error))?;
    if !answer.status().is_success() {
        return Err(failed(&answer.status()));
    }
    let body = answer
        .into_body()
        .collect()
        .await
        .map_err(|error| failed(&error))?;
    Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
}

/// The value of a counter without labels in Prometheus' text format.
fn counter(text: &str, name: &str) -> Option<u64> {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
    text.lines().find_map(value)
}

async fn watch_memory(pids: Vec<u32>, max: tokio::sync::watch::Sender<u64>) {
    let mut ticks = tokio::time::interval(MEMORY_INTERVAL);
    loop {
        ticks.tick().await;
        let rss: u64 = pids.iter().map(|pid| rss_kb(*pid)).sum();
        max.send_if_modified(|max| {
            let more = rss > *max;
            *max = rss.max(*max);
            more
        });
    }
}

/// Resident memory of a process, kB; 0 where the system doesn't tell.
fn rss_kb(pid: u32) -> u64 {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .ok()
        .and_then(|status| {
            let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
            line.split_whitespace().nth(1)?.parse().ok()
        })
        .unwrap_or(0)
}

fn disk_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => disk_bytes(&entry.path()),
            // Blocks, not length: preallocated files are mostly holes.
            Ok(meta) => std::os::unix::fs::MetadataExt::blocks(&meta) * 512,
            // Gone in between.
            Err(_) => 0,
        })
        .sum()
}
