//! Claims the ports and the store of a server.

use std::{io::ErrorKind, net::SocketAddr};

use anyhow::{Result, anyhow};
use herald_runtime::{config::Secret, tls::TlsConfig};
use time::OffsetDateTime;
use tokio::net::TcpListener;

use super::{
    Config,
    authority::{self, Issued},
    data_dir, descriptors,
    engine::Engine,
    roles::{Role, Roles},
    root_key, storage_key,
};

/// The ports and the store of a server, claimed before anything else starts.
pub(crate) struct Claim {
    pub(super) config: Config,
    pub(super) roles: Roles,
    pub(super) shared: bool,
    pub(super) grpc: TcpListener,
    /// Of a process with the gateway.
    pub(super) operator_grpc: Option<TcpListener>,
    pub(super) internal_grpc: Option<TcpListener>,
    pub(super) http: TcpListener,
    pub(super) engine: Engine,
}

impl Claim {
    /// Binds the ports and opens the store. Fails if another process uses them. `shared`: the process is one of many that
    /// share NATS and the store.
    pub(crate) async fn new(mut config: Config, roles: Roles, shared: bool) -> Result<Self> {
        descriptors::prepare(&config, &roles)?;
        config.warn_of_exposed_ports(&roles);
        // Ports first: a port in use is the most likely error, and nothing has changed yet.
        let grpc = listen(config.grpc, "gRPC", "--grpc").await?;
        let has_gateway = roles.has(Role::Gateway);
        let operator_grpc = if has_gateway {
            Some(listen(config.operator_grpc, "operator gRPC", "--operator-grpc").await?)
        } else {
            None
        };
        let http = listen(config.http, "HTTP", "--http").await?;
        let internal_grpc = match config.internal_grpc {
            Some(address) if has_gateway => Some(listen(address, "internal gRPC", "--internal-grpc").await?),
            _ => None,
        };
        let mut new_key = None;
        if !shared {
            let streams_are_of_store = config.nats.is_child() && !config.store.is_cluster();
            data_dir::check(&config.data_dir, streams_are_of_store)?;
            warn_of_lost_files(&config);
            data_dir::prepare(&config.data_dir)?;
            if config.auth.enabled && config.auth.root_key.is_empty() {
                config.auth.root_key = root_key::open(&config.data_dir)?;
            }
            new_key = config.new_storage_key()?;
        }
        if let Some(key) = &new_key {
            config.store.encryption.key = key.clone();
        }
        let engine = Engine::open(&config, &roles).await?;
        // A store that is refused because its key is missing gets no other one.
        if let Some(key) = &new_key {
            storage_key::write(&config.data_dir, key)?;
        }
        engine.report_encryption(&config, &roles)?;
        Ok(Self {
            config,
            roles,
            shared,
            grpc,
            operator_grpc,
            internal_grpc,
            http,
            engine,
        })
    }
}

impl Claim {
    /// TLS of the gateway's ports.
    pub(crate) fn tls(&self) -> &TlsConfig {
        &self.config.tls
    }

    /// The key of all scopes; empty if there is none.
    pub(crate) fn root_key(&self) -> &Secret {
        &self.config.auth.root_key
    }

    /// Uses a certificate of a private authority for the gateway's ports. Both are made in the data directory unless they are
    /// there.
    pub(crate) fn use_private_certificate(&mut self) -> Result<Issued> {
        let issued = authority::issue(&self.config.data_dir, OffsetDateTime::now_utc())?;
        self.config.tls.cert_file = Some(issued.certificate.clone());
        self.config.tls.key_file = Some(issued.key.clone());
        Ok(issued)
    }
}

/// Warns if the Parquet files of a store that was used before are gone: analytics makes their directory anew.
fn warn_of_lost_files(config: &Config) {
    let was_used = herald_store::embedded::has_store(&config.data_dir).unwrap_or(false);
    if was_used && !config.analytics.dir.exists() {
        tracing::warn!(
            dir = %config.analytics.dir.display(),
            "the directory analytics.dir has vanished and is made anew: its Parquet files are missing, and the counts of \
             `herald stats` are not; put it back, name the directory that it was moved to, or copy files/analytics of a backup"
        );
    }
}

async fn listen(address: SocketAddr, name: &str, flag: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        if error.kind() == ErrorKind::AddrInUse {
            anyhow!(
                "port {}, the {name} port, is in use by another process (is Herald running already?): set another \
                 address with {flag} (port 0 picks a free port)",
                address.port()
            )
        } else {
            anyhow!("can't listen on {address}: {error}; set another address with {flag}")
        }
    })
}
