//! Makes connections to Redis or Valkey, with the TLS authority that its file has at the moment.

use std::{
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use redis::{
    Client, RedisError, TlsCertificates,
    aio::{ConnectionManager, ConnectionManagerConfig},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
};
use tokio::time::{MissedTickBehavior, interval};

use super::{TimelinesConfig, error::redis_error};
use crate::{Error, ErrorKind, Result, cluster::SecretUrl};

/// Interval at which the file of the authority is read.
const READ_INTERVAL: Duration = Duration::from_secs(1);

/// The address of the server, and how it is called.
pub(super) struct Connector {
    url: SecretUrl,
    authority_file: Option<PathBuf>,
    connect_timeout: Duration,
    response_timeout: Duration,
}

/// The content of the file of the authority, PEM. `None`: the authorities of the system.
pub(super) type Authority = Option<Vec<u8>>;

impl Connector {
    pub(super) fn new(config: &TimelinesConfig) -> Self {
        Self {
            url: config.url.clone(),
            authority_file: config.tls_ca_file.clone(),
            connect_timeout: Duration::from_millis(config.connect_timeout_ms),
            response_timeout: Duration::from_millis(config.response_timeout_ms),
        }
    }

    pub(super) fn read_authority(&self) -> Result<Authority> {
        let Some(path) = &self.authority_file else {
            return Ok(None);
        };
        std::fs::read(path).map(Some).map_err(|e| {
            Error::with_source(
                ErrorKind::Invalid,
                format!("can't read the file timelines.tls_ca_file, {}", path.display()),
                e,
            )
        })
    }

    fn use_tls(&self) -> bool {
        self.url.expose().starts_with("rediss:")
    }

    /// Connects to a server, or to a node of a cluster.
    pub(super) async fn single(&self, authority: &Authority) -> Result<(Client, ConnectionManager)> {
        let url = self.url.expose();
        let client = if self.use_tls() {
            Client::build_with_tls(url, certificates(authority))
        } else {
            Client::open(url)
        }
        .map_err(|e| failed(&e))?;
        let manager = ConnectionManager::new_with_config(client.clone(), self.manager_config());
        Ok((client, manager.await.map_err(|e| failed(&e))?))
    }

    /// A connection that is made with its first command.
    pub(super) fn again(&self, client: &Client) -> std::result::Result<ConnectionManager, RedisError> {
        ConnectionManager::new_lazy_with_config(client.clone(), self.manager_config())
    }

    /// Connects to all nodes of a cluster.
    pub(super) async fn cluster(&self, authority: &Authority) -> Result<ClusterConnection> {
        let mut builder = ClusterClient::builder([self.url.expose()])
            .connection_timeout(self.connect_timeout)
            .response_timeout(self.response_timeout)
            .overall_response_timeout(Some(self.response_timeout * 2))
            .retries(3)
            .max_retry_wait(500);
        if self.use_tls() {
            builder = builder.certs(certificates(authority));
        }
        let client = builder.build().map_err(|e| failed(&e))?;
        client.get_async_connection().await.map_err(|e| failed(&e))
    }

    fn manager_config(&self) -> ConnectionManagerConfig {
        ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_max_delay(Duration::from_millis(500))
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(self.response_timeout))
    }
}

fn certificates(authority: &Authority) -> TlsCertificates {
    TlsCertificates {
        client_tls: None,
        root_cert: authority.clone(),
    }
}

fn failed(error: &RedisError) -> Error {
    redis_error("connect to the timelines", error)
}

/// A connection that can be replaced by one with another authority.
pub(super) trait Reconnect: Send + Sync + 'static {
    fn connector(&self) -> &Connector;

    /// Connects with another authority, and uses the new connection from then on.
    fn reconnect(&self, authority: &Authority) -> impl Future<Output = Result<()>> + Send;
}

/// Follows the file of the authority until the connection is dropped. A client of the library keeps the authorities
/// that it was made with, so a changed file needs a new client. The old connection stays in use until the new one is
/// made.
pub(super) fn follow_authority(connection: &Arc<impl Reconnect>, mut used: Authority) {
    if !connection.connector().use_tls() || used.is_none() {
        return;
    }
    let connection: Weak<_> = Arc::downgrade(connection);
    tokio::spawn(async move {
        let mut ticks = interval(READ_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_logged = false;
        loop {
            ticks.tick().await;
            let Some(connection) = connection.upgrade() else {
                return;
            };
            let changed = match connection.connector().read_authority() {
                Ok(read) if read == used => continue,
                Ok(read) => connection.reconnect(&read).await.map(|()| read),
                Err(error) => Err(error),
            };
            match changed {
                Ok(read) => {
                    tracing::info!(
                        "connected to the timelines with the new authority in timelines.tls_ca_file"
                    );
                    (used, is_logged) = (read, false);
                }
                Err(error) if !is_logged => {
                    tracing::warn!(
                        %error,
                        "can't use the new authority in timelines.tls_ca_file; the one that was read before stays in use"
                    );
                    is_logged = true;
                }
                Err(_) => {}
            }
        }
    });
}
