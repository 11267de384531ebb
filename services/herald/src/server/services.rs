//! The services of one process, each with its own end.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tokio::{runtime::Handle, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Services that run until their token is cancelled.
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

    /// Cancelled when these services should end.
    pub(super) fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Runs a service.
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

    /// Runs a service on another runtime.
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

    /// Waits until one of them ends by itself, which is a failure.
    pub(super) async fn failed(&mut self) -> anyhow::Error {
        match self.running.join_next().await {
            Some(Ok((name, Ok(())))) => anyhow!("the {name} service ended by itself"),
            Some(Ok((name, Err(error)))) => error.context(format!("the {name} service failed")),
            Some(Err(error)) => anyhow::Error::new(error).context("a service panicked"),
            None => std::future::pending().await,
        }
    }

    /// Tells all of them to end and waits until they have drained.
    pub(super) async fn stop(mut self, limit: Duration) -> Result<()> {
        self.shutdown.cancel();
        let drained = async {
            let mut outcome = Ok(());
            while let Some(ended) = self.running.join_next().await {
                let ended = match ended {
                    Ok((name, ended)) => {
                        ended.with_context(|| format!("the {name} service failed while it drained"))
                    }
                    Err(error) => {
                        Err(anyhow::Error::new(error).context("a service panicked while it drained"))
                    }
                };
                outcome = outcome.and(ended);
            }
            outcome
        };
        tokio::time::timeout(limit, drained)
            .await
            .unwrap_or_else(|_| Err(anyhow!("services had not drained after {} s", limit.as_secs())))
    }
}
