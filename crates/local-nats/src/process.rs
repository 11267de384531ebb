//! The child process: started, signalled, awaited, and never signalled once its pid may be another's.

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
/// A thread waits for its end without reaping it; reaping and signalling happen under one lock. So a signal can never
/// reach another process that got the same pid.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    child: Arc<Mutex<Child>>,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl Process {
    /// Starts the child, in a process group of its own: Ctrl-C at the terminal is for the parent alone.
    pub(crate) fn spawn(mut command: Command) -> io::Result<Self> {
        command.process_group(0).stdin(Stdio::null());
        let (started, start) = mpsc::channel();
        // The parent-death signal comes when the *thread* ends that started the child, so that must be a thread which
        // outlives it, and none of an async runtime.
        thread::Builder::new().name("nats-server".into()).spawn(move || {
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
            // The receiver waits for this below; there is no way on which it doesn't.
            let _ = started.send(Ok(Self {
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

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// The status, if the child has ended.
    pub(crate) fn status(&self) -> io::Result<Option<ExitStatus>> {
        lock(&self.child).try_wait()
    }

    /// Sends a signal; none if the child has ended.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        let mut child = lock(&self.child);
        if child.try_wait()?.is_some() {
            return Ok(());
        }
        match pid(self.pid) {
            Some(pid) => Ok(kill_process(pid, signal)?),
            None => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Waits for the end of the child, without borrowing it.
    pub(crate) fn exited(&self) -> impl Future<Output = io::Result<ExitStatus>> + Send + use<> {
        let mut exit = self.exit.clone();
        async move {
            let status = exit.wait_for(Option::is_some).await.map_err(io::Error::other)?;
            status.ok_or_else(|| io::ErrorKind::NotFound.into())
        }
    }

    /// Asks the child to stop, and kills it if it hasn't within the limit.
    pub(crate) async fn stop(&self, limit: Duration) -> io::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        if let Ok(status) = tokio::time::timeout(limit, self.exited()).await {
            return status;
        }
        tracing::warn!(
            pid = self.pid,
            ?limit,
            "nats-server did not stop in time, so it is killed"
        );
        self.kill().await
    }

    pub(crate) async fn kill(&self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        self.exited().await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut child = lock(&self.child);
        // Both fail only when the child is reaped already. The wait is short: nothing outlives SIGKILL for long, and
        // whoever removes the directory next must not race with a server that still writes to it.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Waits for the end of a child, which stays a zombie and so keeps its pid.
fn wait_unreaped(child: u32) {
    let Some(child) = pid(child) else { return };
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    // Other errors than an interruption mean that it is reaped already, by `drop`.
    while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(child), options) {}
}

fn pid(raw: u32) -> Option<Pid> {
    i32::try_from(raw).ok().and_then(Pid::from_raw)
}

fn lock(child: &Mutex<Child>) -> MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A command that runs the program, and has the kernel kill it when the parent dies, where that can be done.
pub(crate) fn command(program: &Path, dies_with_parent: bool) -> Command {
    if !(dies_with_parent && can_die_with_parent()) {
        return Command::new(program);
    }
    // `setpriv` becomes the program by exec, so the pid is the program's.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// Whether there is a `setpriv` that knows the parent-death signal; Busybox's doesn't.
fn can_die_with_parent() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
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
