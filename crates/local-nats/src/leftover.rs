//! A server that an earlier parent left behind.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use crate::config::Layout;
use crate::error::{Error, Result};

const TICK: Duration = Duration::from_millis(10);
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Ends the server that still serves this directory, if there is one.
///
/// To be called under the directory's lock only: without it, the server may be that of a parent which lives.
pub(crate) async fn end(layout: &Layout, stop_limit: Duration) -> Result<()> {
    let config = layout.config();
    let Some(pid) = read_pid(&layout.pid())?.filter(|&pid| serves(pid, &config)) else {
        return Ok(());
    };
    let raw = pid.as_raw_nonzero().get().unsigned_abs();
    tracing::warn!(pid = raw, dir = %layout.dir.display(), "ending a nats-server that was left behind");
    let fail = |source| Error::Leftover {
        dir: layout.dir.clone(),
        pid: raw,
        source,
    };

    for (signal, limit) in [(Signal::TERM, stop_limit), (Signal::KILL, KILL_LIMIT)] {
        match kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(fail(Some(error.into()))),
        }
        let deadline = Instant::now() + limit;
        // Looked at again and again: as soon as the pid is another's, or nobody's, no more signals go there.
        while serves(pid, &config) {
            if Instant::now() >= deadline {
                break;
            }
            sleep(TICK).await;
        }
        if !serves(pid, &config) {
            return Ok(());
        }
    }
    Err(fail(None))
}

fn read_pid(path: &Path) -> Result<Option<Pid>> {
    match std::fs::read_to_string(path) {
        // Half-written, it names no process or the wrong one, and the command line tells.
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

/// Whether a process lives whose command line names this configuration file.
fn serves(pid: Pid, config: &Path) -> bool {
    let config = config.as_os_str().as_encoded_bytes();
    command_line(pid).is_some_and(|line| line.windows(config.len()).any(|part| part == config))
}

/// The command line; none for a process that has ended, a zombie included.
#[cfg(target_os = "linux")]
fn command_line(pid: Pid) -> Option<Vec<u8>> {
    std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()
}

/// The command line; none for a process that has ended, a zombie included.
#[cfg(not(target_os = "linux"))]
fn command_line(pid: Pid) -> Option<Vec<u8>> {
    let pid = pid.as_raw_nonzero().to_string();
    let output = std::process::Command::new("ps")
        .args(["-ww", "-o", "command=", "-p", &pid])
        .output()
        .ok()?;
    Some(output.stdout)
}
