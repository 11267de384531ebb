//! Several consumers that one service works on.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};
use crate::{ConsumeOptions, Handler, Mesh, Topology, consumers};

/// Where work is done that nobody waits for. With connections and threads of its own it stands before nobody's messages,
/// however much of it there is.
#[derive(Debug, Clone)]
pub struct Background {
    /// Connected on that runtime.
    pub mesh: Mesh,
    /// With threads of its own.
    pub runtime: Handle,
}

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

    /// Starts to work on a consumer, as [`Mesh::consume`] says; on one of redriven messages in the [`Background`], if the mesh
    /// has one.
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
        let background = self.mesh.background();
        let background = background.filter(|_| consumers::is_redrive(consumer));
        let mesh = background
            .map_or(&self.mesh, |background| &background.mesh)
            .clone();
        let stop = self.stop.clone();
        let work = async move { mesh.consume(&spec, handler, options, stop).await };
        match background {
            Some(background) => self.running.spawn_on(work, &background.runtime),
            None => self.running.spawn(work),
        };
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
