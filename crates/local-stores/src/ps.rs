//! The state and the children of a process, read with `ps`.

use std::process::Command;

use rustix::process::Pid;

use crate::error::{Error, Result};

/// Children of a process, also those that wait to be reaped.
pub(crate) fn children(parent: u32) -> Result<Vec<Pid>> {
    let all = ps(&["-A", "-o", "pid=,ppid="])?;
    let parent = parent.to_string();
    Ok(all
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let pid: i32 = fields.next()?.parse().ok()?;
            (fields.next()? == parent).then(|| Pid::from_raw(pid)).flatten()
        })
        .collect())
}

/// Whether a signal has stopped the process.
pub(crate) fn is_stopped(pid: u32) -> Result<bool> {
    Ok(ps(&["-o", "stat=", "-p", &pid.to_string()])?
        .trim()
        .starts_with('T'))
}

/// Whether a process has not ended yet. One that waits to be reaped has ended.
pub(crate) fn is_any_alive(pids: &[Pid]) -> Result<bool> {
    if pids.is_empty() {
        return Ok(false);
    }
    let pids: Vec<String> = pids.iter().map(|pid| pid.as_raw_nonzero().to_string()).collect();
    let states = ps(&["-o", "stat=", "-p", &pids.join(",")])?;
    Ok(states.lines().any(|state| !state.trim().starts_with('Z')))
}

fn ps(arguments: &[&str]) -> Result<String> {
    let output = Command::new("ps")
        .args(arguments)
        .output()
        .map_err(Error::io("run ps"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
