//! Threads and connections for analytics and dead letters.
//!
//! Both have long pieces of work: analytics encodes Parquet files, an audit reads each post of its window. On the threads of the
//! live services a fresh post would wait behind them. There are half as many of these threads as processors, so that a post
//! finds one free.

use std::{num::NonZero, thread};

use anyhow::{Context as _, Result};
use herald_mesh::Mesh;
use tokio::runtime::{Builder, Handle, Runtime};

/// Where these services run.
#[derive(Clone)]
pub(super) struct Background {
    /// Connected on that runtime.
    pub(super) mesh: Mesh,
    /// With threads of its own.
    pub(super) runtime: Handle,
}

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
