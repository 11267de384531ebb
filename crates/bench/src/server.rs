//! The server under test: `herald up` as a child process.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use herald_cli::{context::Context, failure::Failure};
use herald_runtime::telemetry::LOG_VARIABLES;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    task::JoinHandle,
};

/// Limit for the start; includes the download of nats-server on a machine without one.
const START_LIMIT: Duration = Duration::from_mins(5);
/// Limit for the drain at shutdown.
const STOP_LIMIT: Duration = Duration::from_mins(1);
/// Time between two memory samples.
const MEMORY_INTERVAL: Duration = Duration::from_millis(100);

/// Ready event of `herald up`.
#[derive(Debug, Deserialize)]
pub(super) struct Ready {
    event: String,
    grpc: String,
    /// Of a process with the gateway.
    operator_grpc: Option<String>,
    http: String,
    herald_pid: u32,
    nats: String,
    nats_pid: Option<u32>,
}

/// The password of the nats-server that `herald up` has started.
fn read_password(data_dir: &Path) -> Option<String> {
    let password = std::fs::read_to_string(data_dir.join("nats/nats-server.password")).ok()?;
    Some(password.trim().to_owned())
}

fn with_credentials(url: &str, password: Option<String>) -> String {
    match password {
        Some(password) => url.replacen("nats://", &format!("nats://herald:{password}@"), 1),
        None => url.to_owned(),
    }
}

/// A running server with measurements of its memory and disk usage.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    grpc: String,
    operator_grpc: String,
    http: String,
    nats: String,
    pids: Vec<u32>,
    data_dir: PathBuf,
    memory: JoinHandle<()>,
    rss_kb_max: tokio::sync::watch::Receiver<u64>,
    /// Time from the start of the process to its ready event.
    pub(super) ready_after: Duration,
}

impl Server {
    /// Starts `herald up` of this program with the configuration file of --config, with `options` and with additions to
    /// the environment, and waits until it is ready. With JSON output its log is limited to warnings and errors unless
    /// the environment sets a log filter.
    pub(super) async fn start(
        data_dir: &Path,
        options: &[String],
        environment: &[(&str, &str)],
        context: &Context,
    ) -> Result<Self, Failure> {
        let quiet = context.output.is_json();
        let program = std::env::current_exe()
            .map_err(|error| Failure::io("can't find the path of this program", &error))?;
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
                "--operator-grpc",
                "127.0.0.1:0",
                "--http",
                "127.0.0.1:0",
            ])
            .args(["--nats-port", "0", "--allow-private-endpoints", "--data-dir"])
            .arg(data_dir)
            .args(
                context
                    .global
                    .config
                    .iter()
                    .flat_map(|file| ["--config".as_ref(), file.as_os_str()]),
            )
            .args(options)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // Ctrl-C must not reach the server: the benchmark stops it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Failure::io("can't start `herald up`", &error))?;
        let stdout = child
            .stdout
            .take()
            .ok_or_else(|| Failure::failed("can't read the output of `herald up`".to_owned()))?;
        let ready = tokio::time::timeout(START_LIMIT, wait_ready(stdout))
            .await
            .map_err(|_| {
                Failure::failed(format!(
                    "`herald up` was not ready after {START_LIMIT:?}; see its log above"
                ))
            })??;
        let pids: Vec<u32> = [Some(ready.herald_pid), ready.nats_pid]
            .into_iter()
            .flatten()
            .collect();
        let operators = ready
            .operator_grpc
            .ok_or_else(|| Failure::failed("`herald up` did not print its operator port"))?;
        let (sender, rss_kb_max) = tokio::sync::watch::channel(0);
        let memory = tokio::spawn(sample_memory(pids.clone(), sender));
        Ok(Self {
            child,
            grpc: format!("http://{}", ready.grpc),
            operator_grpc: format!("http://{operators}"),
            http: format!("http://{}", ready.http),
            nats: with_credentials(&ready.nats, ready.nats_pid.and(read_password(data_dir))),
            pids,
            data_dir: data_dir.into(),
            memory,
            rss_kb_max,
            ready_after: started.elapsed(),
        })
    }

    /// Process ids of herald and its nats-server.
    pub(super) fn pids(&self) -> (u32, Option<u32>) {
        (self.pids[0], self.pids.get(1).copied())
    }

    /// URL of the gRPC listener.
    pub(super) fn url(&self) -> &str {
        &self.grpc
    }

    /// URL of the operator port.
    pub(super) fn operator_url(&self) -> &str {
        &self.operator_grpc
    }

    /// URL of the server's nats-server, with its user and password.
    pub(super) fn nats(&self) -> &str {
        &self.nats
    }

    /// Reads a counter without labels from `/metrics`.
    pub(super) async fn counter(&self, name: &str) -> Result<u64, Failure> {
        let url = format!("{}/metrics", self.http);
        let text = http_get(&url).await?;
        parse_counter(&text, name).ok_or_else(|| Failure::failed(format!("{url} has no metric {name}")))
    }

    /// Resident memory of herald and nats-server together, MB.
    pub(super) fn rss_mb(&self) -> f64 {
        self.pids.iter().map(|pid| rss_kb(*pid)).sum::<u64>() as f64 / 1_000.0
    }

    /// Maximum resident memory of herald and nats-server together, MB.
    pub(super) fn rss_mb_max(&self) -> f64 {
        *self.rss_kb_max.borrow() as f64 / 1_000.0
    }

    /// Disk usage of the data directory, MB.
    pub(super) fn disk_mb(&self) -> f64 {
        disk_bytes(&self.data_dir) as f64 / 1e6
    }

    /// Sends SIGINT and waits until the server has drained.
    pub(super) async fn stop(mut self) -> Result<(), Failure> {
        self.memory.abort();
        let pid = self
            .child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(rustix::process::Pid::from_raw)
            .ok_or_else(|| {
                Failure::failed("`herald up` exited unexpectedly; see its log above".to_owned())
            })?;
        rustix::process::kill_process(pid, rustix::process::Signal::INT)
            .map_err(|error| Failure::io("can't signal `herald up`", &error.into()))?;
        let status = tokio::time::timeout(STOP_LIMIT, self.child.wait())
            .await
            .map_err(|_| Failure::failed(format!("`herald up` did not drain within {STOP_LIMIT:?}")))?
            .map_err(|error| Failure::io("can't wait for `herald up`", &error))?;
        if status.success() {
            Ok(())
        } else {
            Err(Failure::failed(format!(
                "`herald up` exited with {status}; see its log above"
            )))
        }
    }
}

/// Reads lines until the ready event; then keeps reading in a task, so that the pipe never fills.
pub(super) async fn wait_ready(stdout: tokio::process::ChildStdout) -> Result<Ready, Failure> {
    let mut lines = BufReader::new(stdout).lines();
    loop {
        let line = lines
            .next_line()
            .await
            .map_err(|error| Failure::io("can't read the output of `herald up`", &error))?
            .ok_or_else(|| {
                Failure::failed("`herald up` exited before it was ready; see its log above".to_owned())
            })?;
        if let Ok(ready) = serde_json::from_str::<Ready>(&line)
            && ready.event == "ready"
        {
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok(ready);
        }
    }
}

async fn http_get(url: &str) -> Result<String, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::failed(format!("can't read {url}: {error}"));
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

/// Value of a counter without labels in the Prometheus text format.
fn parse_counter(text: &str, name: &str) -> Option<u64> {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
    text.lines().find_map(value)
}

async fn sample_memory(pids: Vec<u32>, max: tokio::sync::watch::Sender<u64>) {
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

/// Resident memory of a process, kB; 0 where `/proc` doesn't report it.
fn rss_kb(pid: u32) -> u64 {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .ok()
        .and_then(|status| {
            let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
            line.split_whitespace().nth(1)?.parse().ok()
        })
        .unwrap_or(0)
}

pub(super) fn disk_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => disk_bytes(&entry.path()),
            // Blocks, not length: preallocated files are sparse.
            Ok(meta) => std::os::unix::fs::MetadataExt::blocks(&meta) * 512,
            // The file was removed meanwhile.
            Err(_) => 0,
        })
        .sum()
}
