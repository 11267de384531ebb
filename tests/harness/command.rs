//! Runs `herald` commands as a shell does.

use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

/// Output and exit code of a command.
#[derive(Debug)]
pub struct Output {
    /// Exit code; -1 if a signal ended the process.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a program and waits for its exit. Panics if the program can't be started.
pub async fn run(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let done = Command::new(program)
        .args(arguments)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap_or_else(|error| panic!("can't start {program}: {error}"));
    Output {
        code: done.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
    }
}

/// Runs a program and parses its standard output as JSON. Panics if the program fails or its output isn't JSON.
pub async fn run_json(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Value {
    let done = run(program, arguments, variables).await;
    assert_eq!(
        done.code, 0,
        "{program} {arguments:?} failed:\n{}{}",
        done.stdout, done.stderr
    );
    serde_json::from_str(&done.stdout).unwrap_or_else(|error| {
        panic!(
            "{program} {arguments:?} printed no JSON ({error}): {}",
            done.stdout
        )
    })
}
