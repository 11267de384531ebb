//! Running external commands with a timeout and cancellation.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Cancels blocking work when its caller stops waiting.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns a guard that cancels on drop: when the future that holds it is dropped.
    pub(crate) fn on_drop(&self) -> CancelOnDrop {
        CancelOnDrop(self.clone())
    }
}

pub(crate) struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Error of a command.
#[derive(Debug)]
pub(crate) enum CommandError {
    /// The command failed, for this reason.
    Failed(String),
    /// The command was cancelled or interrupted by a signal. Try no other command.
    Interrupted,
}

impl CommandError {
    #[expect(clippy::needless_pass_by_value, reason = "as map_err calls it")]
    pub(crate) fn failed(reason: impl ToString) -> Self {
        Self::Failed(reason.to_string())
    }
}

/// Poll interval for the end of a command.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Runs a command and returns its standard output. Kills it after `timeout` or on cancellation.
pub(crate) fn run(command: &mut Command, timeout: Duration, cancel: &Cancel) -> Result<String, CommandError> {
    let name = command.get_program().to_string_lossy().into_owned();
    // Files instead of pipes, because pipes would have to be drained during the wait.
    let mut stdout = tempfile::tempfile().map_err(CommandError::failed)?;
    let mut stderr = tempfile::tempfile().map_err(CommandError::failed)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().map_err(CommandError::failed)?)
        .stderr(stderr.try_clone().map_err(CommandError::failed)?)
        .spawn()
        .map_err(|error| CommandError::Failed(format!("can't start {name}: {error}")))?;

    let deadline = Instant::now() + timeout;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(CommandError::failed)? {
            break status;
        }
        let timed_out = Instant::now() >= deadline;
        if timed_out || cancel.is_cancelled() {
            // Errors are ignored: the child is not reaped yet, so both calls succeed.
            let _ = child.kill();
            let _ = child.wait();
            return Err(if timed_out {
                CommandError::Failed(format!("{name} took longer than {timeout:?} and was killed"))
            } else {
                CommandError::Interrupted
            });
        }
        thread::sleep(POLL_INTERVAL);
    };

    if status.success() {
        return read(&mut stdout).map_err(CommandError::failed);
    }
    if let Some(signal) = status.signal()
        && (signal == rustix::process::Signal::INT.as_raw()
            || signal == rustix::process::Signal::TERM.as_raw())
    {
        // Ctrl-C at the terminal also reaches the command. It cancels the whole search.
        return Err(CommandError::Interrupted);
    }
    let stderr = read(&mut stderr).unwrap_or_default();
    let last = stderr
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("no error output")
        .trim();
    Err(CommandError::Failed(format!("{name} failed ({status}): {last}")))
}

/// Maximum output that is read from a command, bytes.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

fn read(file: &mut std::fs::File) -> std::io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
