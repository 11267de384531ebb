//! Threads and connections for what nobody waits for: analytics, dead letters, and redriven messages.
//!
//! A redrive of thousands of letters a second has many short tasks. On the threads of the live services each step of a fresh
//! post would wait behind them.

use anyhow::{Context as _, Result};
use herald_mesh::{Background, Mesh};
use tokio::runtime::{Builder, Handle, Runtime};

/// The threads, for as long as this is there.
pub(super) struct Threads {
    handle: Handle,
    /// Only gone in `drop`.
    runtime: Option<Runtime>,
}

impl Threads {
    /// As many as there are processors.
    pub(super) fn start() -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .enable_all()
            .thread_name("background")
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
