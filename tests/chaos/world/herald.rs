//! `herald up` as a child process that is restarted whenever it exits.

use std::{
    fs::File,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::process::Signal;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdout, Command},
    sync::watch,
    task::JoinHandle,
};

use super::{free_port, signal};
use crate::{herald_program, log::Log};

/// Delay between an exit and the next start, so that a process that can't start doesn't loop.
const RESTART_DELAY: Duration = Duration::from_millis(100);
/// Time limit of a start; includes the recovery of the store.
const START_LIMIT: Duration = Duration::from_mins(1);

/// Options of one start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StartOptions {
    /// `FAILPOINTS` of the process; empty: none.
    pub(crate) failpoints: String,
}

/// Options of all starts.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) dir: PathBuf,
    pub(crate) nats_url: String,
    pub(crate) variables: Vec<(String, String)>,
    /// Failpoints of every start.
    pub(crate) sabotage: String,
    /// Options of the first start.
    pub(crate) first_start: StartOptions,
}

/// State of the running process.
#[derive(Debug, Clone, Default)]
struct State {
    pid: Option<u32>,
    ready: bool,
    /// Number of starts.
    starts: u64,
}

#[derive(Debug, Default)]
struct Shared {
    next: Mutex<StartOptions>,
    /// Exits without a kill.
    unexpected_exits: Mutex<Vec<String>>,
    kills: Mutex<u64>,
}

/// A mesh with a supervisor that restarts it.
pub(crate) struct Herald {
    url: String,
    shared: Arc<Shared>,
    state: watch::Receiver<State>,
    supervisor: JoinHandle<()>,
}

impl Herald {
    /// Starts the mesh and waits until it is ready.
    pub(crate) async fn start(log: &Log, settings: Settings) -> Self {
        let (grpc, http) = (free_port(), free_port());
        let shared = Arc::<Shared>::default();
        *shared.next.lock() = settings.first_start.clone();
        let (sender, state) = watch::channel(State::default());
        let log_path = settings.dir.join("herald.log");
        let supervisor = Supervisor {
            log: log.clone(),
            settings,
            ports: (grpc, http),
            log_path: log_path.clone(),
            shared: shared.clone(),
            state: sender,
        };
        let herald = Self {
            url: format!("http://127.0.0.1:{grpc}"),
            shared,
            state,
            supervisor: tokio::spawn(supervisor.run()),
        };
        if !herald.wait_ready(START_LIMIT).await {
            let log = std::fs::read_to_string(log_path).unwrap_or_default();
            panic!("herald is not ready after {START_LIMIT:?}:\n{log}");
        }
        herald
    }

    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }

    /// Waits until the mesh is ready; false after `limit`.
    async fn wait_ready(&self, limit: Duration) -> bool {
        let mut state = self.state.clone();
        let ready = state.wait_for(|state| state.ready);
        tokio::time::timeout(limit, ready)
            .await
            .is_ok_and(|ready| ready.is_ok())
    }

    /// Sends SIGKILL; `next` configures the next start.
    pub(crate) fn kill(&self, next: StartOptions) {
        *self.shared.next.lock() = next;
        if let Some(pid) = self.state.borrow().pid {
            signal(pid, Signal::KILL);
        }
    }

    /// Sends SIGSTOP or SIGCONT.
    pub(crate) fn freeze(&self, selected: bool) {
        if let Some(pid) = self.state.borrow().pid {
            signal(pid, if selected { Signal::STOP } else { Signal::CONT });
        }
    }

    /// Number of starts so far.
    pub(crate) fn starts(&self) -> u64 {
        self.state.borrow().starts
    }

    /// Number of kills so far, by a signal or at a failpoint.
    pub(crate) fn kills(&self) -> u64 {
        *self.shared.kills.lock()
    }

    /// Exits without a kill, and starts that hung.
    pub(crate) fn unexpected_exits(&self) -> Vec<String> {
        self.shared.unexpected_exits.lock().clone()
    }
}

impl Drop for Herald {
    fn drop(&mut self) {
        // The task owns the child, and dropping the child kills it.
        self.supervisor.abort();
    }
}

struct Supervisor {
    log: Log,
    settings: Settings,
    ports: (u16, u16),
    log_path: PathBuf,
    shared: Arc<Shared>,
    state: watch::Sender<State>,
}

impl Supervisor {
    async fn run(self) {
        loop {
            let start = std::mem::take(&mut *self.shared.next.lock());
            let (mut child, stdout) = self.spawn(&start);
            self.state.send_modify(|state| {
                state.pid = child.id();
                state.starts += 1;
            });
            let fault = (!start.failpoints.is_empty()).then(|| {
                self.log
                    .begin_fault(format!("herald started with failpoints {}", start.failpoints))
            });
            let ready = tokio::time::timeout(START_LIMIT, read_ready(stdout)).await;
            if ready.is_err() {
                self.record_unexpected_exit(format!(
                    "herald was neither ready nor exited after {START_LIMIT:?}"
                ));
                child.kill().await.expect("a child can be killed");
            }
            let ready = ready == Ok(true);
            if ready {
                self.state.send_modify(|state| state.ready = true);
            }
            let status = child.wait().await.expect("a child can be waited for");
            self.state.send_modify(|state| {
                state.pid = None;
                state.ready = false;
            });
            drop(fault);
            self.record_exit(status, ready);
            tokio::time::sleep(RESTART_DELAY).await;
        }
    }

    /// A kill by a signal is intended. An exit before the ready event is not unexpected: nats-server may be down.
    fn record_exit(&self, status: ExitStatus, ready: bool) {
        if status.code().is_none() {
            *self.shared.kills.lock() += 1;
            self.log.print("herald was killed");
        } else if ready {
            self.record_unexpected_exit(format!("herald exited unexpectedly: {status}"));
        } else {
            self.log
                .print(format!("herald exited before it was ready: {status}"));
        }
    }

    fn record_unexpected_exit(&self, what: String) {
        self.log.print(&what);
        self.shared.unexpected_exits.lock().push(what);
    }

    fn spawn(&self, start: &StartOptions) -> (Child, ChildStdout) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log_path)
            .expect("a log file");
        let failpoints = [self.settings.sabotage.as_str(), start.failpoints.as_str()]
            .into_iter()
            .filter(|points| !points.is_empty())
            .collect::<Vec<_>>()
            .join(";");
        let (grpc, http) = self.ports;
        let mut child = Command::new(herald_program())
            .args(["up", "--output", "json", "--allow-private-endpoints"])
            .args([
                "--grpc",
                &format!("127.0.0.1:{grpc}"),
                "--http",
                &format!("127.0.0.1:{http}"),
            ])
            .args(["--nats-url", &self.settings.nats_url])
            .arg("--data-dir")
            .arg(self.settings.dir.join("data"))
            .envs(self.settings.variables.iter().map(|(name, value)| (name, value)))
            .env("FAILPOINTS", failpoints)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("herald can be started");
        let stdout = child.stdout.take().expect("piped");
        (child, stdout)
    }
}

/// Waits for the ready event; false if the process ends before.
async fn read_ready(stdout: ChildStdout) -> bool {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let event: Option<Value> = serde_json::from_str(&line).ok();
        if event.is_some_and(|event| event["event"] == "ready") {
            return true;
        }
    }
    false
}
