//! Runs several consumers in one service.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};
use crate::{ConsumeOptions, Handler, Mesh, Topology};

/// The workers of one service, one per consumer. When one worker fails, all stop: a service that doesn't work on one of
/// its lanes must not look healthy.
#[derive(Debug)]
pub struct Workers {
    mesh: Mesh,
    topology: Arc<Topology>,
    stop: CancellationToken,
    running: JoinSet<Result<()>>,
}

impl Workers {
    /// Starts without a worker. Workers stop at `shutdown`.
    pub fn new(mesh: Mesh, topology: Arc<Topology>, shutdown: &CancellationToken) -> Self {
        Self {
            mesh,
            topology,
            stop: shutdown.child_token(),
            running: JoinSet::new(),
        }
    }

    /// Token that is cancelled at the shutdown, or when a worker fails.
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a worker on a consumer; see [`Mesh::consume`].
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the topology has no such consumer.
    pub fn spawn<H: Handler>(
        &mut self,
        consumer: &str,
        handler: Arc<H>,
        options: ConsumeOptions,
    ) -> Result<()> {
        let spec = self
            .topology
            .consumer(consumer)
            .cloned()
            .ok_or_else(|| Error::new(ErrorKind::Invalid, format!("unknown consumer {consumer}")))?;
        let (mesh, stop) = (self.mesh.clone(), self.stop.clone());
        self.running
            .spawn(async move { mesh.consume(&spec, handler, options, stop).await });
        Ok(())
    }

    /// Waits until all workers have drained and stopped. Returns the first error.
    pub async fn join(mut self) -> Result<()> {
        let mut outcome = Ok(());
        while let Some(ended) = self.running.join_next().await {
            self.stop.cancel();
            let ended = ended.unwrap_or_else(|error| {
                Err(Error::with_source(
                    ErrorKind::Unavailable,
                    "worker panicked",
                    error,
                ))
            });
            outcome = outcome.and(ended);
        }
        outcome
    }
}
