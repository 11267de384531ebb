//! TLS of the ports of a process.

use anyhow::{Context as _, Result};
use herald_gateway::{Listeners, PortsTls};
use herald_runtime::{
    metrics::Shared,
    tls::{ClientTls, Protocols, ServerTls, register_certificates},
};

use super::{
    Config,
    roles::{Role, Roles},
};

/// TLS of the port of the internal services, and of the process's own calls to it.
pub(super) struct Internal {
    pub(super) server: ServerTls,
    pub(super) to_self: ClientTls,
}

impl Internal {
    /// `None` without TLS.
    pub(super) fn open(config: &Config) -> Result<Option<Self>> {
        let Some(files) = config.internal_tls.server() else {
            return Ok(None);
        };
        let server = ServerTls::open(&files, Protocols::Http2).context("internal_tls")?;
        let to_self = ClientTls::to_self(&server, config.internal_tls.identity()).context("internal_tls")?;
        Ok(Some(Self { server, to_self }))
    }
}

/// TLS of the gateway's ports; `None` without it.
pub(super) fn gateway(config: &Config) -> Result<Option<PortsTls>> {
    let Some(files) = config.tls.server() else {
        return Ok(None);
    };
    let open = |protocols| ServerTls::open(&files, protocols).context("tls");
    Ok(Some(PortsTls {
        public: open(Protocols::Http2AndHttp1)?,
        operators: open(Protocols::Http2)?,
    }))
}

/// Registers the end of the certificates of a process.
pub(super) fn register_metrics(metrics: &Shared, gateway: Option<&Listeners>, internal: Option<&Internal>) {
    let public = gateway.and_then(|listeners| listeners.tls.as_ref());
    let ports = [
        public.map(|tls| ("public", tls.public.clone())),
        internal.map(|tls| ("internal", tls.server.clone())),
    ];
    let ports = ports.into_iter().flatten().collect();
    metrics.register(|registry| register_certificates(registry, ports));
}

/// TLS of `grpc`: the gateway's, or that of the internal services of a process without it.
pub(super) fn of_grpc(config: &Config, roles: &Roles) -> Result<Option<ServerTls>> {
    if roles.has(Role::Gateway) {
        Ok(gateway(config)?.map(|tls| tls.public))
    } else {
        Ok(Internal::open(config)?.map(|tls| tls.server))
    }
}
