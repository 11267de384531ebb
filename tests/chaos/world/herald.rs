//! `herald up` in a process of its own, started again whenever it dies.

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

/// Between a death and the next start, so that a process that can't start doesn't spin.
const RESTART_DELAY: Duration = Duration::from_millis(100);
/// A start that takes longer hangs; includes reading back what was stored.
const START_LIMIT: Duration = Duration::from_mins(1);

/// What a process is told at its start to do to itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Life {
    /// In the words of `FAILPOINTS`; empty: nothing.
    pub(crate) failpoints: String,
}

/// How to start it.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) dir: PathBuf,
    pub(crate) nats_url: String,
    pub(crate) variables: Vec<(String, String)>,
    /// Failpoints of each life.
    pub(crate) sabotage: String,
    pub(crate) life: Life,
}

/// What is known of the process that runs.
#[derive(Debug, Clone, Default)]
struct State {
    pid: Option<u32>,
    ready: bool,
    /// How many were started.
    lives: u64,
}

#[derive(Debug, Default)]
struct Shared {
    next: Mutex<Life>,
    /// How processes ended that nobody killed.
    surprises: Mutex<Vec<String>>,
    deaths: Mutex<u64>,
}

/// A mesh that is kept running.
pub(crate) struct Herald {
    url: String,
    shared: Arc<Shared>,
    state: watch::Receiver<State>,
    keeper: JoinHandle<()>,
}

impl Herald {
    /// Starts it and waits until it is ready.
    pub(crate) async fn start(log: &Log, settings: Settings) -> Self {
        let (grpc, http) = (free_port(), free_port());
        let shared = Arc::<Shared>::default();
        *shared.next.lock() = settings.life.clone();
        let (sender, state) = watch::channel(State::default());
        let log_path = settings.dir.join("herald.log");
        let keeper = Keeper {
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
            keeper: tokio::spawn(keeper.run()),
        };
        if !herald.until_ready(START_LIMIT).await {
            let log = std::fs::read_to_string(log_path).unwrap_or_default();
            panic!("herald is not ready after {START_LIMIT:?}:\n{log}");
        }
        herald
    }

    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }

    /// Waits until it is ready; false when it isn't in time.
    async fn until_ready(&self, limit: Duration) -> bool {
        let mut state = self.state.clone();
        let ready = state.wait_for(|state| state.ready);
        tokio::time::timeout(limit, ready)
            .await
            .is_ok_and(|ready| ready.is_ok())
    }

    /// Kills it with SIGKILL; the next life is as given.
    pub(crate) fn kill(&self, next: Life) {
        *self.shared.next.lock() = next;
        if let Some(pid) = self.state.borrow().pid {
            signal(pid, Signal::KILL);
        }
    }

    /// Stops it as a debugger or a starved machine would, or lets it go on.
    pub(crate) fn freeze(&self, frozen: bool) {
        if let Some(pid) = self.state.borrow().pid {
            signal(pid, if frozen { Signal::STOP } else { Signal::CONT });
        }
    }

    /// How many lives began.
    pub(crate) fn lives(&self) -> u64 {
        self.state.borrow().lives
    }

    /// How many lives ended by a kill, from without or at a failpoint.
    pub(crate) fn deaths(&self) -> u64 {
        *self.shared.deaths.lock()
    }

    /// How lives ended that should not have.
    pub(crate) fn surprises(&self) -> Vec<String> {
        self.shared.surprises.lock().clone()
    }
}

impl Drop for Herald {
    fn drop(&mut self) {
        // Drops the child with it, which kills it.
        self.keeper.abort();
    }
}

struct Keeper {
    log: Log,
    settings: Settings,
    ports: (u16, u16),
    log_path: PathBuf,
    shared: Arc<Shared>,
    state: watch::Sender<State>,
}

impl Keeper {
    async fn run(self) {
        loop {
            let life = std::mem::take(&mut *self.shared.next.lock());
            let (mut child, stdout) = self.spawn(&life);
            self.state.send_modify(|state| {
                state.pid = child.id();
                state.lives += 1;
            });
            let window = (!life.failpoints.is_empty())
                .then(|| self.log.begin(format!("herald lives with {}", life.failpoints)));
            let ready = tokio::time::timeout(START_LIMIT, ready(stdout)).await;
            if ready.is_err() {
                self.surprise(format!("herald was neither ready nor dead after {START_LIMIT:?}"));
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
            drop(window);
            self.note(status, ready);
            tokio::time::sleep(RESTART_DELAY).await;
        }
    }

    /// A death by SIGKILL is what we wanted. One before it was ready can be the broker's, which is then down.
    fn note(&self, status: ExitStatus, ready: bool) {
        if status.code().is_none() {
            *self.shared.deaths.lock() += 1;
            self.log.say("herald died");
        } else if ready {
            self.surprise(format!("herald ended by itself: {status}"));
        } else {
            self.log.say(format!("herald did not start: {status}"));
        }
    }

    fn surprise(&self, what: String) {
        self.log.say(&what);
        self.shared.surprises.lock().push(what);
    }

    fn spawn(&self, life: &Life) -> (Child, ChildStdout) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log_path)
            .expect("a log file");
        let failpoints = [self.settings.sabotage.as_str(), life.failpoints.as_str()]
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

/// Whether it said that it is ready; false when it ended before.
async fn ready(stdout: ChildStdout) -> bool {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let event: Option<Value> = serde_json::from_str(&line).ok();
        if event.is_some_and(|event| event["event"] == "ready") {
            return true;
        }
    }
    false
}
