//! A runtime and a NATS connection for the analytics and dead-letter services.
//!
//! Both have long CPU-bound tasks: analytics encodes Parquet files, an audit reads every post of its time range. On the
//! threads of the other services these tasks would delay new posts. The runtime has half as many threads as there are
//! processors, so that the other services always have processors left.

use std::{num::NonZero, thread};

use anyhow::{Context as _, Result};
use herald_mesh::{Mesh, Metrics};
use tokio::runtime::{Builder, Handle, Runtime};

/// A handle to the background runtime and its connection.
#[derive(Clone)]
pub(super) struct Background {
    /// The NATS connection; its tasks run on the background runtime.
    pub(super) mesh: Mesh,
    /// The background runtime.
    pub(super) runtime: Handle,
}

/// Owns the background runtime and stops it on drop.
pub(super) struct BackgroundRuntime {
    handle: Handle,
    /// `None` only in `drop`.
    runtime: Option<Runtime>,
}

impl BackgroundRuntime {
    /// Starts the threads: half as many as processors, at least one.
    pub(super) fn start() -> Result<Self> {
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let runtime = Builder::new_multi_thread()
            .enable_all()
            .thread_name("background")
            .worker_threads((processors / 2).max(1))
            .build()
            .context("can't start the background threads")?;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }

    /// Connects to NATS on the background runtime.
    pub(super) async fn connect(
        &self,
        mut config: herald_mesh::Config,
        metrics: Metrics,
    ) -> Result<Background> {
        // So that logs and nats-server tell its connections from the others.
        config.name.push_str(" background");
        let runtime = self.handle.clone();
        let connecting = runtime.spawn(async move { Mesh::connect_with(&config, metrics).await });
        let mesh = connecting.await?.context("can't connect to NATS")?;
        Ok(Background { mesh, runtime })
    }
}

impl Drop for BackgroundRuntime {
    /// Doesn't wait for tasks: the services on this runtime have drained, or exceeded the drain limit.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
