//! Stopping a leftover server: one whose parent process died without stopping it.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use crate::config::Layout;
use crate::error::{Error, Result};

const POLL_INTERVAL: Duration = Duration::from_millis(10);
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Stops the leftover server of this directory, if there is one.
///
/// Call it only with the lock of the directory: without the lock, the server can belong to a running parent.
pub(crate) async fn stop(layout: &Layout, stop_limit: Duration) -> Result<()> {
    let config = layout.config();
    let Some(pid) = read_pid(&layout.pid())?.filter(|&pid| serves(pid, &config)) else {
        return Ok(());
    };
    let raw = pid.as_raw_nonzero().get().unsigned_abs();
    tracing::warn!(pid = raw, dir = %layout.dir.display(), "stopping a leftover nats-server of an earlier process");
    let fail = |source| Error::Leftover {
        dir: layout.dir.clone(),
        pid: raw,
        source,
    };

    for (signal, limit) in [(Signal::TERM, stop_limit), (Signal::KILL, KILL_TIMEOUT)] {
        match kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(fail(Some(error.into()))),
        }
        let deadline = Instant::now() + limit;
        // Checked again before each signal: after the server's exit, the pid can belong to another process.
        while serves(pid, &config) {
            if Instant::now() >= deadline {
                break;
            }
            sleep(POLL_INTERVAL).await;
        }
        if !serves(pid, &config) {
            return Ok(());
        }
    }
    Err(fail(None))
}

fn read_pid(path: &Path) -> Result<Option<Pid>> {
    match std::fs::read_to_string(path) {
        // A partly written file can name a wrong process; `serves` checks its command line.
        Ok(text) => Ok(text
            .trim()
            .parse()
            .ok()
            .filter(|&pid| pid > 1)
            .and_then(Pid::from_raw)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io {
            action: format!("read {}", path.display()),
            source,
        }),
    }
}

/// Whether the process runs and its command line contains this configuration file.
fn serves(pid: Pid, config: &Path) -> bool {
    let config = config.as_os_str().as_encoded_bytes();
    command_line(pid).is_some_and(|line| line.windows(config.len()).any(|part| part == config))
}

/// The command line of a process; `None` or empty if it has exited, also as a zombie.
#[cfg(target_os = "linux")]
fn command_line(pid: Pid) -> Option<Vec<u8>> {
    std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()
}

/// The command line of a process; `None` or empty if it has exited, also as a zombie.
#[cfg(not(target_os = "linux"))]
fn command_line(pid: Pid) -> Option<Vec<u8>> {
    let pid = pid.as_raw_nonzero().to_string();
    let output = std::process::Command::new("ps")
        .args(["-ww", "-o", "command=", "-p", &pid])
        .output()
        .ok()?;
    Some(output.stdout)
}
