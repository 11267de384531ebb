//! Runs `herald` as a person or a script would.

use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Output {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a program to its end.
pub async fn output(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let done = Command::new(program)
        .args(arguments)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap_or_else(|error| panic!("{program} can't be run: {error}"));
    Output {
        code: done.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
    }
}

/// Runs a program that must succeed and print one JSON value.
pub async fn json(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Value {
    let done = output(program, arguments, variables).await;
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
