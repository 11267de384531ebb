//! Threads and connections for what nobody waits for: analytics, dead letters, and redriven messages.
//!
//! A redrive of thousands of letters a second has many short tasks. On the threads of the live services each step of a fresh
//! post would wait behind them. On threads of their own they leave it a processor: there are half as many threads as
//! processors, and they are nice.

use std::{num::NonZero, thread};

use anyhow::{Context as _, Result};
use herald_mesh::{Background, Mesh};
use tokio::runtime::{Builder, Handle, Runtime};

/// How nice they are: beside busy threads each gets a tenth of a processor. Enough that a lock which one of them holds is soon
/// let go; threads that run only when nobody else does could hold it for seconds.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// The threads, for as long as this is there.
pub(super) struct Threads {
    handle: Handle,
    /// Only gone in `drop`.
    runtime: Option<Runtime>,
}

impl Threads {
    /// Half as many as there are processors, and one at least.
    pub(super) fn start() -> Result<Self> {
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let runtime = Builder::new_multi_thread()
            .enable_all()
            .thread_name("background")
            .worker_threads((processors / 2).max(1))
            .on_thread_start(be_nice)
            .build()
            .context("the background threads can't be started")?;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }

    /// Connects them to the mesh.
    pub(super) async fn connect(&self, reach: herald_mesh::Config) -> Result<Background> {
        let runtime = self.handle.clone();
        let connecting = runtime.spawn(async move { Mesh::connect(&reach).await });
        let mesh = connecting.await?.context("NATS can't be reached")?;
        Ok(Background { mesh, runtime })
    }
}

impl Drop for Threads {
    /// Doesn't wait: what ran there has drained, or took too long.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Has this thread leave the processors to others. Only Linux tells threads from their process.
fn be_nice() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::debug!(%error, "a background thread is like all others");
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::process::nice;

    use super::*;

    #[test]
    fn its_threads_are_nice_and_those_for_long_work_too() {
        let before = nice(0).unwrap();
        let threads = Threads::start().unwrap();
        let found = threads.handle.block_on(async {
            let tasks = threads.handle.spawn(async { nice(0).unwrap() });
            let long = threads.handle.spawn_blocking(|| nice(0).unwrap());
            [tasks.await.unwrap(), long.await.unwrap()]
        });
        assert_eq!(found, [before + NICENESS; 2]);
        assert_eq!(nice(0).unwrap(), before);
    }
}
