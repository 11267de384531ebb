//! The NATS server: an external one, or a supervised child process.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use herald_local_nats as local;
use herald_mesh::{Auth, Config as MeshConfig, NatsUser};
use herald_runtime::config::SecretUrl;
use tokio_util::sync::CancellationToken;

use super::Config;

/// Delay before a child that exited is restarted, so that a child that fails at once doesn't cause a busy loop.
const RESTART_DELAY: Duration = Duration::from_millis(500);

/// The user of the child. Its password is in the data directory, so that other programs of this machine can neither
/// publish nor delete messages.
pub(super) const USER: &str = "herald";

/// Limit of all files of the child, bytes: more than any disk has.
const FILE_BYTES_MAX: u64 = 1 << 61;

/// Maximum of the sum of all stream limits, bytes. The child has room for the streams of two configurations.
pub(super) const STREAM_BYTES_MAX: u64 = FILE_BYTES_MAX / 2;

/// The broker of the server.
#[derive(Debug)]
pub(super) enum Broker {
    /// An external server.
    External {
        /// Its URL, or the URLs of a cluster separated by commas.
        url: SecretUrl,
    },
    /// A child process.
    Child(Box<local::Server>),
}

impl Broker {
    /// Uses the server of `nats.url`, or starts a child process if it is unset.
    pub(super) async fn start(config: &Config) -> Result<Self> {
        if !config.nats.is_child() {
            let url = config.nats.url.clone();
            return Ok(Self::External { url });
        }
        let locate = match &config.nats.program {
            Some(program) => local::Locate::exactly(program.clone()),
            None => local::Locate::default(),
        };
        let server = local::Server::start(local::Config {
            locate,
            name: Some("herald".into()),
            user: Some(USER.into()),
            port: config.nats.port,
            // By default nats-server limits its files to 75% of the free disk space. The stream limits replace that
            // limit: they reserve no disk space, and the store rejects posts before the disk is full. The limit doesn't
            // follow from the settings: with lower ones, the server would refuse the streams as they are on disk,
            // before their limits can be changed.
            max_file_bytes: Some(FILE_BYTES_MAX),
            sync_interval: if config.nats.sync_always {
                local::SyncInterval::Always
            } else {
                local::SyncInterval::ServerDefault
            },
            ..local::Config::in_dir(config.data_dir.join("nats"))
        })
        .await
        .map_err(|error| match error {
            local::Error::PortTaken { port } => anyhow!(
                "port {port}, the port of nats-server, is in use by another process: set another port with \
                 --nats-port (0 picks a free port), or use the running NATS server with --nats-url"
            ),
            error => anyhow::Error::new(error).context("can't start nats-server"),
        })?;
        Ok(Self::Child(Box::new(server)))
    }

    /// The URL without credentials.
    pub(super) fn public_url(&self) -> String {
        match self {
            Self::External { url } => url.redacted(),
            Self::Child(server) => server.client_url(),
        }
    }

    /// How a process connects that does the work of these users: to a child as its user, to an external server as
    /// configured.
    pub(super) fn mesh_config(&self, config: &Config, users: &[NatsUser]) -> Result<MeshConfig> {
        let url = match self {
            Self::External { url } => url.expose().to_owned(),
            Self::Child(server) => server.client_url(),
        };
        let mesh_config = config.nats.mesh_config(&url, &config.topology, users);
        let mut mesh_config = mesh_config.map_err(anyhow::Error::msg)?;
        if let Self::Child(server) = self
            && let Some((user, password)) = server.credentials()
        {
            mesh_config.auth = Auth::Password {
                user: user.to_owned(),
                password: password.to_owned(),
            };
        }
        Ok(mesh_config)
    }

    /// The process id of the child; `None` for an external server.
    pub(super) fn pid(&self) -> Option<u32> {
        match self {
            Self::External { .. } => None,
            Self::Child(server) => Some(server.pid()),
        }
    }

    /// Restarts the child whenever it exits, until `shutdown`; then returns the broker. A crash only interrupts
    /// service: streams are on disk and clients reconnect.
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
            tracing::error!(status, "nats-server exited, restarting it");
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
                        "can't restart nats-server"
                    ),
                }
            }
        }
    }

    /// Stops the child.
    pub(super) async fn stop(self) -> Result<()> {
        if let Self::Child(mut server) = self {
            server.stop().await.context("nats-server did not stop")?;
        }
        Ok(())
    }
}
