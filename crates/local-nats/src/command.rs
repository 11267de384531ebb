//! Commands that are run to their end, within a limit, and given up when nobody waits any more.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Told to blocking work when nobody waits for it any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Cancels when dropped, as a future is that its caller gave up.
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

/// Why a command didn't do its work.
#[derive(Debug)]
pub(crate) enum CommandError {
    /// It failed by itself; the reason is for people.
    Failed(String),
    /// It was told to stop, so nothing else should be tried.
    Interrupted,
}

impl CommandError {
    #[expect(clippy::needless_pass_by_value, reason = "as map_err calls it")]
    pub(crate) fn failed(reason: impl ToString) -> Self {
        Self::Failed(reason.to_string())
    }
}

/// How often a running command is looked at.
const TICK: Duration = Duration::from_millis(5);

/// Runs a command to its end and returns what it wrote to its standard output.
pub(crate) fn run(command: &mut Command, limit: Duration, cancel: &Cancel) -> Result<String, CommandError> {
    let name = command.get_program().to_string_lossy().into_owned();
    // Files and not pipes: nobody has to drain them while the command is waited for.
    let mut stdout = tempfile::tempfile().map_err(CommandError::failed)?;
    let mut stderr = tempfile::tempfile().map_err(CommandError::failed)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().map_err(CommandError::failed)?)
        .stderr(stderr.try_clone().map_err(CommandError::failed)?)
        .spawn()
        .map_err(|error| CommandError::Failed(format!("{name} does not start: {error}")))?;

    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(CommandError::failed)? {
            break status;
        }
        let late = Instant::now() >= deadline;
        if late || cancel.is_cancelled() {
            // Neither can fail in a way that matters: the child is ours and not reaped yet.
            let _ = child.kill();
            let _ = child.wait();
            return Err(if late {
                CommandError::Failed(format!("{name} took longer than {limit:?}"))
            } else {
                CommandError::Interrupted
            });
        }
        thread::sleep(TICK);
    };

    if status.success() {
        return read(&mut stdout).map_err(CommandError::failed);
    }
    if let Some(signal) = status.signal()
        && (signal == rustix::process::Signal::INT.as_raw()
            || signal == rustix::process::Signal::TERM.as_raw())
    {
        // Ctrl-C at the terminal reaches the command too, and means all that we do.
        return Err(CommandError::Interrupted);
    }
    let stderr = read(&mut stderr).unwrap_or_default();
    let last = stderr
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("no word why")
        .trim();
    Err(CommandError::Failed(format!("{name} failed ({status}): {last}")))
}

/// More than any command here has to say.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

fn read(file: &mut std::fs::File) -> std::io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
