//! A shell command line in its own process group, as in a terminal.

use std::{ffi::OsString, process::Stdio, sync::Arc, time::Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    task::JoinHandle,
};

/// A running command line. Drop kills all its processes.
#[derive(Debug)]
pub(super) struct Process {
    group: Pid,
    child: Child,
    stdout: Arc<Mutex<Vec<u8>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    pub(super) fn start(line: &str, directory: &str, variables: &[(&str, OsString)]) -> Self {
        let mut child = Command::new("bash")
            .args(["-c", line])
            .current_dir(directory)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let group = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
        let (stdout, out) = collect(child.stdout.take().unwrap());
        let (stderr, err) = collect(child.stderr.take().unwrap());
        Self {
            group: group.unwrap(),
            child,
            stdout,
            stderr,
            readers: vec![out, err],
        }
    }

    pub(super) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout.lock()).into_owned()
    }

    pub(super) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock()).into_owned()
    }

    pub(super) fn has_exited(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until the process has exited and its output is complete; returns the exit code. `None`: it still runs at
    /// `end`, or a signal ended it.
    pub(super) async fn wait_exit(&mut self, end: Instant) -> Option<i32> {
        let ended = async {
            let status = self.child.wait().await.unwrap();
            for reader in self.readers.drain(..) {
                reader.await.unwrap();
            }
            status.code()
        };
        tokio::time::timeout_at(end.into(), ended).await.ok()?
    }

    /// Sends SIGINT to the process group, as Ctrl-C does.
    pub(super) fn interrupt(&self) {
        // The process may have exited already.
        let _ = kill_process_group(self.group, Signal::INT);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A child that was waited for has no id, and its group id may be reused.
        if self.child.id().is_some() {
            let _ = kill_process_group(self.group, Signal::KILL);
        }
    }
}

/// Collects the output of a process in a task.
fn collect(mut from: impl AsyncRead + Unpin + Send + 'static) -> (Arc<Mutex<Vec<u8>>>, JoinHandle<()>) {
    let all = Arc::new(Mutex::new(Vec::new()));
    let into = all.clone();
    let reader = tokio::spawn(async move {
        let mut chunk = [0; 4_096];
        while let Ok(read @ 1..) = from.read(&mut chunk).await {
            into.lock().extend_from_slice(&chunk[..read]);
        }
    });
    (all, reader)
}
