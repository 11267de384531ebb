//! Runs the program.

use std::{
    process::{Output, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

/// More than any command needs on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);

/// What a command left.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
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

    /// Itself, if it ended well.
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The program with these arguments and none of the surroundings' settings.
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
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Runs a command to its end.
pub(crate) async fn herald(server: &str, arguments: &[&str]) -> Done {
    let output = tokio::time::timeout(LIMIT, command(server, arguments).output()).await;
    output
        .unwrap_or_else(|_| panic!("{arguments:?} doesn't end"))
        .unwrap()
        .into()
}

/// Runs a command to its end with something on standard input.
pub(crate) async fn herald_with_input(server: &str, arguments: &[&str], input: &str) -> Done {
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

/// A command that streams.
pub(crate) struct Streaming {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Streaming {
    pub(crate) fn start(server: &str, arguments: &[&str]) -> Self {
        let mut child = command(server, arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next line, as it is.
    pub(crate) async fn line(&mut self) -> String {
        let line = tokio::time::timeout(LIMIT, self.lines.next_line())
            .await
            .expect("no line comes");
        line.unwrap().expect("the output ended")
    }

    /// The next line, as JSON.
    pub(crate) async fn json(&mut self) -> Value {
        let line = self.line().await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// Sends Ctrl-C.
    pub(crate) async fn interrupt(&self) {
        let pid = self.child.id().expect("it has ended").to_string();
        assert!(
            Command::new("kill")
                .args(["-INT", &pid])
                .status()
                .await
                .unwrap()
                .success()
        );
    }

    /// Closes our end of its output.
    pub(crate) fn close(self) -> Child {
        self.child
    }

    /// The exit code.
    pub(crate) async fn end(mut self) -> i32 {
        let status = tokio::time::timeout(LIMIT, self.child.wait())
            .await
            .expect("it doesn't end");
        status.unwrap().code().unwrap_or(-1)
    }
}
