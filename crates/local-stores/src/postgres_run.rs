//! One start of a PostgreSQL server: a first process and its children, one for each session and task.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use herald_local_process::{Log, Process, Signal};
use rustix::process::{Pid, kill_process};

use crate::error::{Error, Result};
use crate::ps;

const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Time for the server to end its processes when it is dropped.
const DROP_LIMIT: Duration = Duration::from_secs(8);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The processes of a server. Dropping them ends them.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) process: Process,
    pub(crate) log: Log,
    paused: AtomicBool,
}

impl Run {
    pub(crate) fn new(process: Process, log: Log) -> Self {
        Self {
            process,
            log,
            paused: AtomicBool::new(false),
        }
    }

    /// Ends sessions and writes a checkpoint (the "fast" shutdown).
    pub(crate) async fn stop(&self) -> Result<()> {
        self.resume()?;
        self.process
            .stop(Signal::INT, STOP_LIMIT)
            .await
            .map(drop)
            .map_err(Error::io("stop PostgreSQL"))
    }

    /// Kills all processes. The children are killed while their parent is stopped: it can't reap them, so none of their
    /// ids belongs to another process. On return all have ended, so that the server can start again: it refuses to
    /// while a process is attached to its shared memory.
    pub(crate) async fn kill(&self) -> Result<()> {
        let children = self.stop_first().await?;
        for child in &children {
            signal(*child, Signal::KILL)?;
        }
        let deadline = Instant::now() + STOP_LIMIT;
        while ps::is_any_alive(&children)? && Instant::now() < deadline {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        self.process
            .kill()
            .await
            .map(drop)
            .map_err(Error::io("kill PostgreSQL"))
    }

    pub(crate) async fn pause(&self) -> Result<()> {
        self.paused.store(true, Ordering::Relaxed);
        for child in self.stop_first().await? {
            signal(child, Signal::STOP)?;
        }
        Ok(())
    }

    pub(crate) fn resume(&self) -> Result<()> {
        if !self.paused.swap(false, Ordering::Relaxed) || self.status()? {
            return Ok(());
        }
        for child in ps::children(self.process.pid())? {
            signal(child, Signal::CONT)?;
        }
        self.process
            .signal(Signal::CONT)
            .map_err(Error::io("resume PostgreSQL"))
    }

    /// Whether the first process has exited.
    fn status(&self) -> Result<bool> {
        let status = self
            .process
            .status()
            .map_err(Error::io("read the status of PostgreSQL"))?;
        Ok(status.is_some())
    }

    /// Stops the first process, so that it starts no more children, and returns its children.
    async fn stop_first(&self) -> Result<Vec<Pid>> {
        self.process
            .signal(Signal::STOP)
            .map_err(Error::io("pause PostgreSQL"))?;
        while !self.status()? {
            if ps::is_stopped(self.process.pid())? {
                return ps::children(self.process.pid());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(Vec::new())
    }
}

fn signal(pid: Pid, signal: Signal) -> Result<()> {
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(Error::Io {
            action: "signal a process of PostgreSQL".into(),
            source: error.into(),
        }),
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Errors leave the first process to its own `drop`, which kills it; its children end when they notice.
        let _ = self.resume();
        let _ = self.process.signal(Signal::QUIT);
        let deadline = Instant::now() + DROP_LIMIT;
        while matches!(self.process.status(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(POLL_INTERVAL);
        }
    }
}
