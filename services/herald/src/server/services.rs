//! Runs and stops the services of the process.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tokio::{runtime::Handle, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// A group of services that run until their common token is cancelled.
pub(super) struct Services {
    running: JoinSet<(&'static str, Result<()>)>,
    shutdown: CancellationToken,
}

impl Services {
    pub(super) fn new() -> Self {
        Self {
            running: JoinSet::new(),
            shutdown: CancellationToken::new(),
        }
    }

    /// The token that stops these services.
    pub(super) fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Spawns a service on the current runtime.
    pub(super) fn spawn<E>(
        &mut self,
        name: &'static str,
        service: impl Future<Output = Result<(), E>> + Send + 'static,
    ) where
        E: std::error::Error + Send + Sync + 'static,
    {
        self.running
            .spawn(async move { (name, service.await.map_err(anyhow::Error::new)) });
    }

    /// Spawns a service on another runtime.
    pub(super) fn spawn_on<E>(
        &mut self,
        runtime: &Handle,
        name: &'static str,
        service: impl Future<Output = Result<(), E>> + Send + 'static,
    ) where
        E: std::error::Error + Send + Sync + 'static,
    {
        self.running.spawn_on(
            async move { (name, service.await.map_err(anyhow::Error::new)) },
            runtime,
        );
    }

    /// Waits until a service returns or panics. Without a shutdown both are failures.
    pub(super) async fn failed(&mut self) -> anyhow::Error {
        match self.running.join_next().await {
            Some(Ok((name, Ok(())))) => anyhow!("the {name} service stopped unexpectedly"),
            Some(Ok((name, Err(error)))) => error.context(format!("the {name} service failed")),
            Some(Err(error)) => anyhow::Error::new(error).context("a service panicked"),
            None => std::future::pending().await,
        }
    }

    /// Cancels the token and waits until all services have drained, at most for `limit`.
    pub(super) async fn stop(mut self, limit: Duration) -> Result<()> {
        self.shutdown.cancel();
        let drained = async {
            let mut outcome = Ok(());
            while let Some(ended) = self.running.join_next().await {
                let ended = match ended {
                    Ok((name, ended)) => {
                        ended.with_context(|| format!("the {name} service failed while draining"))
                    }
                    Err(error) => Err(anyhow::Error::new(error).context("a service panicked while draining")),
                };
                outcome = outcome.and(ended);
            }
            outcome
        };
        tokio::time::timeout(limit, drained)
            .await
            .unwrap_or_else(|_| Err(anyhow!("the services did not drain within {} s", limit.as_secs())))
    }
}
