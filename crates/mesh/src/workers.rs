//! Several consumers that one service works on.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};
use crate::{ConsumeOptions, Handler, Mesh, Topology};

/// The workers of one service, one a consumer. When one fails all of them end: a service without one of its lanes would be
/// half of one, and look well.
#[derive(Debug)]
pub struct Workers {
    mesh: Mesh,
    topology: Arc<Topology>,
    stop: CancellationToken,
    running: JoinSet<Result<()>>,
}

impl Workers {
    /// None yet. They will end after `shutdown`.
    pub fn new(mesh: Mesh, topology: Arc<Topology>, shutdown: &CancellationToken) -> Self {
        Self {
            mesh,
            topology,
            stop: shutdown.child_token(),
            running: JoinSet::new(),
        }
    }

    /// Cancelled when the workers should end: by the shutdown, or because one of them failed.
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts to work on a consumer, as [`Mesh::consume`] says.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the topology has no such consumer.
    pub fn spawn<H: Handler>(
        &mut self,
        consumer: &str,
        handler: Arc<H>,
        options: ConsumeOptions,
    ) -> Result<()> {
        let spec = self.topology.consumer(consumer).cloned().ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!("the topology has no consumer {consumer}"),
            )
        })?;
        let (mesh, stop) = (self.mesh.clone(), self.stop.clone());
        self.running
            .spawn(async move { mesh.consume(&spec, handler, options, stop).await });
        Ok(())
    }

    /// Waits until all have ended and drained. The first failure is the outcome.
    pub async fn join(mut self) -> Result<()> {
        let mut outcome = Ok(());
        while let Some(ended) = self.running.join_next().await {
            self.stop.cancel();
            let ended = ended.unwrap_or_else(|error| {
                Err(Error::with_source(ErrorKind::Unavailable, "a worker died", error))
            });
            outcome = outcome.and(ended);
        }
        outcome
    }
}
