//! Stopping a leftover server: one whose parent process died without stopping it.

#[cfg(target_os = "linux")]
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
#[cfg(target_os = "linux")]
use std::path::PathBuf;
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
        // A partly written file can name a wrong process; `serves` checks what it is.
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

/// Whether the process is the server of this directory, and runs.
///
/// The pid file alone says nothing: a copy of a directory has the pid file of the original, whose server can be running.
/// So the process must be `nats-server --config FILE` with a file of this name, and run in this very directory, whatever
/// the path of the directory was when it started.
#[cfg(target_os = "linux")]
fn serves(pid: Pid, config: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;

    let process = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    // Empty if the process has exited, also as a zombie.
    let Ok(line) = std::fs::read(process.join("cmdline")) else {
        return false;
    };
    let mut arguments = line.split(|byte| *byte == 0).skip(1);
    let is_server = arguments.next() == Some(b"--config")
        && arguments
            .next()
            .is_some_and(|file| Path::new(OsStr::from_bytes(file)).file_name() == config.file_name());
    let identity = |dir: &Path| {
        let metadata = std::fs::metadata(dir).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    // A link of the kernel: it leads to the directory even if that was renamed.
    let runs_in = identity(&process.join("cwd"));
    is_server && runs_in.is_some() && runs_in == config.parent().and_then(identity)
}

/// Whether the process is the server of this directory, and runs: its command line ends with this configuration file.
#[cfg(not(target_os = "linux"))]
fn serves(pid: Pid, config: &Path) -> bool {
    let pid = pid.as_raw_nonzero().to_string();
    let output = std::process::Command::new("ps")
        .args(["-ww", "-o", "command=", "-p", &pid])
        .output();
    let end = [b" --config ", config.as_os_str().as_bytes()].concat();
    // Empty if the process has exited, also as a zombie.
    output.is_ok_and(|output| output.stdout.trim_ascii_end().ends_with(&end))
}
