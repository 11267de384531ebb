//! A `herald serve` process.

use std::{fs::File, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::Clients;

const START_LIMIT: Duration = Duration::from_mins(2);
const STOP_LIMIT: Duration = Duration::from_mins(1);

#[derive(Debug, Clone, Deserialize)]
struct Ready {
    roles: Vec<String>,
    grpc: String,
    operator_grpc: Option<String>,
    internal_grpc: Option<String>,
    http: String,
}

/// A running `herald serve`. Drop kills the process.
#[derive(Debug)]
pub struct Process {
    program: String,
    child: Child,
    ready: Ready,
    dir: TempDir,
}

impl Process {
    /// Starts a process with these roles, on free ports unless `arguments` name others, and waits until it is ready.
    pub async fn start(
        program: &str,
        roles: &str,
        arguments: &[&str],
        variables: &[(String, String)],
    ) -> Self {
        let (child, dir, event) = Self::spawn(program, roles, arguments, variables, "ready").await;
        let ready = serde_json::from_value(event).expect("the event `ready` has the addresses");
        Self {
            program: program.to_owned(),
            child,
            ready,
            dir,
        }
    }

    /// Starts a process that does not become ready, ends it, and returns the event that says why.
    pub async fn start_unready(
        program: &str,
        roles: &str,
        arguments: &[&str],
        variables: &[(String, String)],
    ) -> Value {
        let (_, _, event) = Self::spawn(program, roles, arguments, variables, "not_ready").await;
        event
    }

    /// Starts a process and waits for an event on its standard output.
    async fn spawn(
        program: &str,
        roles: &str,
        arguments: &[&str],
        variables: &[(String, String)],
        event: &str,
    ) -> (Child, TempDir, Value) {
        let dir = TempDir::new().expect("a temporary directory");
        let log = File::create(dir.path().join("log")).expect("a log file");
        let mut all = vec!["serve", roles, "--output", "json", "--allow-private-endpoints"];
        for flag in ["--grpc", "--operator-grpc", "--http"] {
            if !arguments.contains(&flag) {
                all.extend([flag, "127.0.0.1:0"]);
            }
        }
        let mut child = Command::new(program)
            .args(all)
            .args(arguments)
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("the process can be started");
        let stdout = child.stdout.take().expect("piped");
        let mut lines = BufReader::new(stdout).lines();
        let found = tokio::time::timeout(START_LIMIT, async {
            while let Some(line) = lines.next_line().await.expect("the output is text") {
                if let Ok(value) = serde_json::from_str::<Value>(&line)
                    && value["event"] == event
                {
                    return Some(value);
                }
            }
            None
        })
        .await;
        let Ok(Some(found)) = found else {
            let log = std::fs::read_to_string(dir.path().join("log"));
            panic!(
                "herald serve {roles} did not report {event}:\n{}",
                log.unwrap_or_default()
            );
        };
        (child, dir, found)
    }

    /// The roles that the process reports.
    pub fn roles(&self) -> &[String] {
        &self.ready.roles
    }

    /// URL of the gRPC listener.
    pub fn url(&self) -> String {
        format!("http://{}", self.ready.grpc)
    }

    /// URL of the operator port of a process with the gateway.
    pub fn operator_url(&self) -> String {
        let address = self.ready.operator_grpc.as_ref();
        format!("http://{}", address.expect("the process has the gateway"))
    }

    /// gRPC clients of a process with the gateway.
    pub async fn clients(&self) -> Clients {
        Clients::connect(self.url(), self.operator_url()).await
    }

    /// URL of the internal gRPC listener of a process with the gateway.
    pub fn internal_url(&self) -> Option<String> {
        self.ready
            .internal_grpc
            .as_ref()
            .map(|address| format!("http://{address}"))
    }

    /// Address of the health and metrics listener.
    pub fn http(&self) -> &str {
        &self.ready.http
    }

    /// The log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.and_then(Pid::from_raw).expect("the process runs");
        kill_process(pid, signal).expect("the process can be signalled");
    }

    /// Sends SIGKILL and waits for the end.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("the process can be killed");
    }

    /// Sends SIGTERM, waits until the process has drained, and returns the exit code.
    pub async fn stop(&mut self) -> i32 {
        self.signal(Signal::TERM);
        self.wait().await
    }

    /// Waits for the end of the process and returns its exit code.
    pub async fn wait(&mut self) -> i32 {
        let status = tokio::time::timeout(STOP_LIMIT, self.child.wait()).await;
        let Ok(status) = status else {
            panic!(
                "herald serve did not drain within {STOP_LIMIT:?}:\n{}",
                self.log()
            )
        };
        status
            .expect("the process can be waited for")
            .code()
            .unwrap_or(-1)
    }

    /// Runs a `herald` command against this gateway and returns its JSON output. Panics if the command fails.
    pub async fn cli(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.extend(["--output", "json"]);
        let variables = [
            ("HERALD_SERVER", &*self.url()),
            ("HERALD_OPERATOR_SERVER", &*self.operator_url()),
        ];
        crate::run_json(&self.program, &all, &variables).await
    }
}
