//! The child process. It is never signalled after its pid could have been reused.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::sync::watch;

/// A child process, killed and reaped when dropped.
///
/// A thread waits for the exit without reaping. Reaping and signalling share one lock, so a signal can't reach another
/// process with the same pid.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    pid: u32,
    child: Arc<Mutex<Child>>,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl Process {
    /// Starts the child in its own process group, so that Ctrl-C at the terminal reaches only the parent. `name` is the
    /// program's, for log lines.
    pub fn spawn(name: &'static str, mut command: Command) -> io::Result<Self> {
        command.process_group(0).stdin(Stdio::null());
        let (started, start) = mpsc::channel();
        // The parent-death signal is sent when the *thread* that started the child ends. So the thread must outlive the
        // child; a thread of an async runtime may not.
        thread::Builder::new().name(name.into()).spawn(move || {
            let (exit_sender, exit) = watch::channel(None);
            let child = match command.spawn() {
                Ok(child) => child,
                Err(error) => {
                    let _ = started.send(Err(error));
                    return;
                }
            };
            let pid = child.id();
            let child = Arc::new(Mutex::new(child));
            // `spawn` waits for this message below.
            let _ = started.send(Ok(Self {
                name,
                pid,
                child: Arc::clone(&child),
                exit,
            }));
            wait_unreaped(pid);
            if let Ok(status) = lock(&child).wait() {
                exit_sender.send_replace(Some(status));
            }
        })?;
        start.recv().map_err(io::Error::other)?
    }

    /// Process id. After the exit of the child it can belong to another process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The exit status; `None` while the child runs.
    pub fn status(&self) -> io::Result<Option<ExitStatus>> {
        lock(&self.child).try_wait()
    }

    /// Sends a signal, unless the child has exited.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let mut child = lock(&self.child);
        if child.try_wait()?.is_some() {
            return Ok(());
        }
        match pid(self.pid) {
            Some(pid) => Ok(kill_process(pid, signal)?),
            None => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Waits for the exit of the child. The future does not borrow `self`.
    pub fn exited(&self) -> impl Future<Output = io::Result<ExitStatus>> + Send + use<> {
        let mut exit = self.exit.clone();
        async move {
            let status = exit.wait_for(Option::is_some).await.map_err(io::Error::other)?;
            status.ok_or_else(|| io::ErrorKind::NotFound.into())
        }
    }

    /// Sends `signal`, and SIGKILL if the child has not exited after `timeout`.
    pub async fn stop(&self, signal: Signal, timeout: Duration) -> io::Result<ExitStatus> {
        self.signal(signal)?;
        if let Ok(status) = tokio::time::timeout(timeout, self.exited()).await {
            return status;
        }
        tracing::warn!(
            pid = self.pid,
            program = self.name,
            ?timeout,
            "the program did not stop in time, killing it"
        );
        self.kill().await
    }

    /// Sends SIGKILL and waits for the exit.
    pub async fn kill(&self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        self.exited().await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut child = lock(&self.child);
        // Both calls fail only if the child is already reaped. `drop` waits for the exit, which follows SIGKILL soon,
        // so that no server writes to a directory that is removed next.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Waits for the exit of a child without reaping it: as a zombie it keeps its pid.
fn wait_unreaped(child: u32) {
    let Some(child) = pid(child) else { return };
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    // Any error other than EINTR means that `drop` has already reaped the child.
    while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(child), options) {}
}

fn pid(raw: u32) -> Option<Pid> {
    i32::try_from(raw).ok().and_then(Pid::from_raw)
}

fn lock(child: &Mutex<Child>) -> MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A command that runs the program. If possible, the kernel sends the program this signal (`KILL`, `QUIT`) when the
/// parent dies.
pub fn command(program: &Path, parent_death: Option<&'static str>) -> Command {
    let Some(signal) = parent_death.filter(|_| can_die_with_parent()) else {
        return Command::new(program);
    };
    // `setpriv` replaces itself with the program (exec), so the pid is that of the program.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal]).arg(program);
    command
}

/// Whether `setpriv` supports the parent-death signal; that of BusyBox does not.
fn can_die_with_parent() -> bool {
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *SUPPORTED.get_or_init(|| {
        cfg!(target_os = "linux")
            && Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "true"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
    })
}
