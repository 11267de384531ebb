//! Claims the ports and the store of a server.

use std::{io::ErrorKind, net::SocketAddr};

use anyhow::{Result, anyhow};
use tokio::net::TcpListener;

use super::{
    Config, data_dir, descriptors,
    engine::Engine,
    roles::{Role, Roles},
};

/// The ports and the store of a server, claimed before anything else starts.
pub(crate) struct Claim {
    pub(super) config: Config,
    pub(super) roles: Roles,
    pub(super) shared: bool,
    pub(super) grpc: TcpListener,
    pub(super) internal_grpc: Option<TcpListener>,
    pub(super) http: TcpListener,
    pub(super) engine: Engine,
}

impl Claim {
    /// Binds the ports and opens the store. Fails if another process uses them. `shared`: the process is one of many that
    /// share NATS and the store.
    pub(crate) async fn new(config: Config, roles: Roles, shared: bool) -> Result<Self> {
        descriptors::prepare(&config, &roles)?;
        // Ports first: a port in use is the most likely error, and nothing has changed yet.
        let grpc = listen(config.grpc, "gRPC", "--grpc").await?;
        let http = listen(config.http, "HTTP", "--http").await?;
        let internal_grpc = match config.internal_grpc {
            Some(address) if roles.has(Role::Gateway) => {
                Some(listen(address, "internal gRPC", "--internal-grpc").await?)
            }
            _ => None,
        };
        if !shared {
            data_dir::prepare(&config.data_dir)?;
        }
        let engine = Engine::open(&config, &roles).await?;
        Ok(Self {
            config,
            roles,
            shared,
            grpc,
            internal_grpc,
            http,
            engine,
        })
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
