//! A `herald` process that is restarted whenever it exits, as the kubelet does.

use std::{
    fs::File,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use herald_local_process::command;
use parking_lot::Mutex;
use rustix::process::Signal;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdout, Command},
    sync::watch,
    task::JoinHandle,
};

use super::signal;
use crate::{herald_program, log::Log};

/// Delay between an exit and the next start, so that a process that can't start doesn't loop.
const RESTART_DELAY: Duration = Duration::from_millis(100);
/// Time limit of a start; includes the recovery of the store.
const START_LIMIT: Duration = Duration::from_mins(1);
/// Time limit of a drain after SIGTERM: the default of herald and some slack.
const DRAIN_LIMIT: Duration = Duration::from_secs(40);

/// Options of one start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StartOptions {
    /// `FAILPOINTS` of the process; empty: none.
    pub(crate) failpoints: String,
}

/// What all starts of a process have in common.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    /// Name in the log.
    pub(super) name: String,
    pub(super) arguments: Vec<String>,
    pub(super) variables: Vec<(String, String)>,
    /// Failpoints of every start.
    pub(super) sabotage: String,
    /// Options of the first start.
    pub(super) first_start: StartOptions,
    pub(super) log_path: PathBuf,
}

/// State of the running process.
#[derive(Debug, Clone, Default)]
struct State {
    pid: Option<u32>,
    ready: bool,
    /// Number of starts.
    starts: u64,
    /// The supervisor has ended.
    ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    next: Mutex<StartOptions>,
    /// Variables of later starts, after those of the launch.
    variables: Mutex<Vec<(String, String)>>,
    end: Mutex<End>,
    /// Exits that nobody asked for.
    unexpected_exits: Mutex<Vec<String>>,
    kills: Mutex<u64>,
}

/// What the next exit means.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Only a kill is expected.
    #[default]
    Killed,
    /// SIGTERM was sent, the process starts again.
    Restarted,
    /// SIGTERM was sent, the process stays down.
    Stopped,
}

/// A process with a supervisor that restarts it.
pub(crate) struct Process {
    name: String,
    log_path: PathBuf,
    shared: Arc<Shared>,
    state: watch::Receiver<State>,
    supervisor: JoinHandle<()>,
}

impl Process {
    /// Starts the process.
    pub(super) fn start(log: &Log, launch: Launch) -> Self {
        let shared = Arc::<Shared>::default();
        *shared.next.lock() = launch.first_start.clone();
        let (sender, state) = watch::channel(State::default());
        let (name, log_path) = (launch.name.clone(), launch.log_path.clone());
        let supervisor = Supervisor {
            log: log.clone(),
            launch,
            shared: shared.clone(),
            state: sender,
        };
        Self {
            name,
            log_path,
            shared,
            state,
            supervisor: tokio::spawn(supervisor.run()),
        }
    }

    /// Waits until the process is ready. Panics with its log after a time limit.
    pub(crate) async fn wait_ready(&self) {
        let mut state = self.state.clone();
        let ready = tokio::time::timeout(START_LIMIT, state.wait_for(|state| state.ready)).await;
        if !ready.is_ok_and(|ready| ready.is_ok()) {
            let log = std::fs::read_to_string(&self.log_path).unwrap_or_default();
            panic!("{} is not ready after {START_LIMIT:?}:\n{log}", self.name);
        }
    }

    /// Sends SIGKILL; `next` configures the next start.
    pub(crate) fn kill(&self, next: StartOptions) {
        *self.shared.next.lock() = next;
        self.signal(Signal::KILL);
    }

    /// Sends SIGSTOP or SIGCONT.
    pub(crate) fn freeze(&self, selected: bool) {
        self.signal(if selected { Signal::STOP } else { Signal::CONT });
    }

    /// Sends SIGTERM and waits until the process has drained and started again, with these variables from now on.
    pub(crate) async fn restart(&self, variables: Vec<(String, String)>) {
        *self.shared.variables.lock() = variables;
        let starts = self.starts();
        self.terminate(End::Restarted);
        self.wait_for("starts again", |state| state.starts > starts && state.ready)
            .await;
    }

    /// Sends SIGTERM and waits until the process has drained. It stays down.
    pub(crate) async fn stop(&self) {
        self.terminate(End::Stopped);
        self.wait_for("drains", |state| state.ended).await;
    }

    /// Whether the process was stopped for good.
    pub(super) fn ended(&self) -> bool {
        self.state.borrow().ended
    }

    /// Number of starts so far.
    pub(crate) fn starts(&self) -> u64 {
        self.state.borrow().starts
    }

    /// Number of kills so far, by a signal or at a failpoint.
    pub(crate) fn kills(&self) -> u64 {
        *self.shared.kills.lock()
    }

    /// Exits that nobody asked for, starts that hung, and drains that hung.
    pub(crate) fn unexpected_exits(&self) -> Vec<String> {
        self.shared.unexpected_exits.lock().clone()
    }

    fn terminate(&self, end: End) {
        *self.shared.end.lock() = end;
        self.signal(Signal::TERM);
    }

    /// Waits for the effect of SIGTERM. A process that ignores it is killed, and that is recorded.
    async fn wait_for(&self, what: &str, reached: impl Fn(&State) -> bool) {
        let mut state = self.state.clone();
        let waited = tokio::time::timeout(DRAIN_LIMIT, state.wait_for(|state| reached(state))).await;
        if waited.is_err() {
            let hung = format!("{} {what} only after more than {DRAIN_LIMIT:?}", self.name);
            self.shared.unexpected_exits.lock().push(hung);
            self.signal(Signal::KILL);
        }
    }

    fn signal(&self, sent: Signal) {
        if let Some(pid) = self.state.borrow().pid {
            signal(pid, sent);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The task owns the child, and dropping the child kills it.
        self.supervisor.abort();
    }
}

struct Supervisor {
    log: Log,
    launch: Launch,
    shared: Arc<Shared>,
    state: watch::Sender<State>,
}

impl Supervisor {
    async fn run(self) {
        let name = &self.launch.name;
        loop {
            let start = std::mem::take(&mut *self.shared.next.lock());
            let (mut child, stdout) = self.spawn(&start);
            self.state.send_modify(|state| {
                state.pid = child.id();
                state.starts += 1;
            });
            let fault = (!start.failpoints.is_empty()).then(|| {
                self.log
                    .begin_fault(format!("{name} started with failpoints {}", start.failpoints))
            });
            let ready = tokio::time::timeout(START_LIMIT, read_ready(stdout)).await;
            if ready.is_err() {
                self.record_unexpected_exit(format!(
                    "{name} was neither ready nor exited after {START_LIMIT:?}"
                ));
                child.kill().await.expect("a child can be killed");
            }
            let ready = ready == Ok(true);
            if ready {
                self.state.send_modify(|state| state.ready = true);
            }
            let status = child.wait().await.expect("a child can be waited for");
            let end = std::mem::take(&mut *self.shared.end.lock());
            self.state.send_modify(|state| {
                state.pid = None;
                state.ready = false;
                state.ended = end == End::Stopped;
            });
            drop(fault);
            self.record_exit(status, ready, end);
            if end == End::Stopped {
                return;
            }
            tokio::time::sleep(RESTART_DELAY).await;
        }
    }

    /// A kill by a signal is intended. An exit before the ready event is not unexpected: a server that it needs may be
    /// down.
    fn record_exit(&self, status: ExitStatus, ready: bool, end: End) {
        let name = &self.launch.name;
        if status.code().is_none() {
            *self.shared.kills.lock() += 1;
            self.log.print(format!("{name} was killed"));
        } else if !ready {
            self.log
                .print(format!("{name} exited before it was ready: {status}"));
        } else if end == End::Killed || !status.success() {
            self.record_unexpected_exit(format!("{name} exited unexpectedly: {status}"));
        }
    }

    fn record_unexpected_exit(&self, what: String) {
        self.log.print(&what);
        self.shared.unexpected_exits.lock().push(what);
    }

    fn spawn(&self, start: &StartOptions) -> (Child, ChildStdout) {
        let launch = &self.launch;
        let log = File::options()
            .create(true)
            .append(true)
            .open(&launch.log_path)
            .expect("a log file");
        let failpoints = [launch.sabotage.as_str(), start.failpoints.as_str()]
            .into_iter()
            .filter(|points| !points.is_empty())
            .collect::<Vec<_>>()
            .join(";");
        let later = self.shared.variables.lock().clone();
        let variables = launch.variables.iter().chain(&later);
        // It ends with the suite, also when the suite is killed.
        let mut child = Command::from(command(&herald_program(), Some("KILL")))
            .args(&launch.arguments)
            .envs(variables.map(|(name, value)| (name, value)))
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
