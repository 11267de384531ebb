//! The NATS server: somebody else's, or a child that is started again when it dies.

use std::time::Duration;

use anyhow::{Context as _, Result};
use herald_local_nats as local;
use tokio_util::sync::CancellationToken;

use super::Config;

/// How long to wait before a child that died is started again, so that one that dies at once doesn't spin.
const RESTART_DELAY: Duration = Duration::from_millis(500);

/// The broker of a mesh.
#[derive(Debug)]
pub(super) enum Broker {
    /// It was there before us.
    Running {
        /// Where.
        url: String,
    },
    /// Our child.
    Child(Box<local::Server>),
}

impl Broker {
    /// Takes the server that the configuration names, or starts one.
    pub(super) async fn start(config: &Config) -> Result<Self> {
        if let Some(url) = &config.nats.url {
            return Ok(Self::Running { url: url.clone() });
        }
        let locate = match &config.nats.program {
            Some(program) => local::Locate::exactly(program.clone()),
            None => local::Locate::default(),
        };
        let server = local::Server::start(local::Config {
            locate,
            name: Some("herald".into()),
            port: config.nats.port,
            // The streams' own limits are the limit, not three quarters of what happens to be free: nothing is set aside on
            // the disk, and the store refuses posts before it is full.
            max_file_bytes: Some(file_bytes(config.topology.bytes_max())),
            sync_interval: if config.nats.sync_always {
                local::SyncInterval::Always
            } else {
                local::SyncInterval::ServerDefault
            },
            ..local::Config::in_dir(config.data_dir.join("nats"))
        })
        .await
        .context("nats-server can't be started")?;
        Ok(Self::Child(Box::new(server)))
    }

    /// Where clients connect to.
    pub(super) fn url(&self) -> String {
        match self {
            Self::Running { url } => url.clone(),
            Self::Child(server) => server.client_url(),
        }
    }

    /// The child's process id.
    pub(super) fn pid(&self) -> Option<u32> {
        match self {
            Self::Running { .. } => None,
            Self::Child(server) => Some(server.pid()),
        }
    }

    /// Starts the child again whenever it dies, until `shutdown`, then gives it back. Streams are on the disk and clients
    /// reconnect, so a crash of the broker is a pause.
    pub(super) async fn supervise(mut self, shutdown: CancellationToken) -> Self {
        let Self::Child(server) = &mut self else {
            shutdown.cancelled().await;
            return self;
        };
        loop {
            let exited = server.exited();
            let Some(status) = shutdown.run_until_cancelled(exited).await else {
                return self;
            };
            let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            tracing::error!(status, "nats-server ended by itself, starting it again");
            loop {
                if shutdown
                    .run_until_cancelled(tokio::time::sleep(RESTART_DELAY))
                    .await
                    .is_none()
                {
                    return self;
                }
                match server.restart().await {
                    Ok(()) => break,
                    Err(error) => tracing::error!(
                        error = herald_runtime::telemetry::error_chain(&error),
                        "nats-server can't be started again"
                    ),
                }
            }
        }
    }

    /// Ends the child.
    pub(super) async fn stop(self) -> Result<()> {
        if let Self::Child(mut server) = self {
            server.stop().await.context("nats-server did not stop")?;
        }
        Ok(())
    }
}

/// What all streams may hold together, and room for the broker's own books.
fn file_bytes(streams: u64) -> u64 {
    streams.saturating_add(streams / 4)
}
