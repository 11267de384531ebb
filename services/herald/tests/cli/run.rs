//! Runs the `herald` program.

use std::{
    process::{Output, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

/// Limit for a command; generous for slow machines.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);

/// The exit code and output of a command.
#[derive(Debug)]
pub(crate) struct CommandResult {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl CommandResult {
    /// The one JSON object on standard output.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The error on standard error, as JSON.
    pub(crate) fn error(&self) -> Value {
        let report: Value =
            serde_json::from_str(&self.stderr).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        report["error"].clone()
    }

    /// Asserts that the exit code is 0.
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

impl From<Output> for CommandResult {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The program with these arguments, without the environment variables that configure it.
pub(crate) fn command(server: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if ["HERALD_", "OTEL_", "RUST_LOG"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        {
            command.env_remove(name);
        }
    }
    command
        .args(arguments)
        .env("HERALD_SERVER", server)
        .env("HERALD_OPERATOR_SERVER", server)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Runs a command until it ends.
pub(crate) async fn herald(server: &str, arguments: &[&str]) -> CommandResult {
    let output = tokio::time::timeout(LIMIT, command(server, arguments).output()).await;
    output
        .unwrap_or_else(|_| panic!("{arguments:?} doesn't end within {LIMIT:?}"))
        .unwrap()
        .into()
}

/// Runs a command with `input` on standard input until it ends.
pub(crate) async fn herald_with_input(server: &str, arguments: &[&str], input: &str) -> CommandResult {
    let mut command = command(server, arguments);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .await
        .unwrap();
    tokio::time::timeout(LIMIT, child.wait_with_output())
        .await
        .unwrap()
        .unwrap()
        .into()
}

/// Sends Ctrl-C to a running command.
pub(crate) async fn interrupt(command: &Child) {
    let pid = command.id().expect("the command is running").to_string();
    let sent = Command::new("kill").args(["-INT", &pid]).status().await;
    assert!(sent.unwrap().success());
}

/// A running command with streaming output.
pub(crate) struct StreamingCommand {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl StreamingCommand {
    pub(crate) fn start(server: &str, arguments: &[&str]) -> Self {
        let mut child = command(server, arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Reads the next line.
    pub(crate) async fn line(&mut self) -> String {
        let line = tokio::time::timeout(LIMIT, self.lines.next_line())
            .await
            .expect("no line within the limit");
        line.unwrap().expect("the output has another line")
    }

    /// Reads the next line as JSON.
    pub(crate) async fn json(&mut self) -> Value {
        let line = self.line().await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// Sends Ctrl-C.
    pub(crate) async fn interrupt(&self) {
        interrupt(&self.child).await;
    }

    /// Closes the reading end of its output.
    pub(crate) fn close(self) -> Child {
        self.child
    }

    /// Waits for the end and returns the exit code.
    pub(crate) async fn end(mut self) -> i32 {
        let status = tokio::time::timeout(LIMIT, self.child.wait())
            .await
            .expect("the command ends within the limit");
        status.unwrap().code().unwrap_or(-1)
    }
}
