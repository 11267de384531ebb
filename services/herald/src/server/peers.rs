//! The ways to the roles that a process calls.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Context as _, Result};
use herald_runtime::{
    in_process::Connector,
    peer::{self, Peer, Urls},
    route::Route,
    tls::ClientTls,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use super::{Config, checks::Checks, roles::Role, roles::Roles, tls::Internal};

/// Routes by role.
#[derive(Default)]
pub(super) struct Channels(BTreeMap<Role, Route>);

impl Channels {
    /// Adds a role of this process that no other process calls.
    pub(super) fn add_in_process(&mut self, role: Role, connector: Connector) {
        self.0.insert(role, Route::in_process(connector));
    }

    /// Adds a role of this process, that listens at an address. `tls`: that of the port, if it has it.
    pub(super) fn add_local(
        &mut self,
        role: Role,
        address: SocketAddr,
        tls: Option<&Internal>,
    ) -> Result<()> {
        let route = match tls {
            None => Route::to(&Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true)),
            Some(tls) => {
                let endpoint = Endpoint::from_shared(format!("https://{address}"))?.tcp_nodelay(true);
                Route::to_tls(&endpoint, &tls.to_self, &address.ip().to_string())?
            }
        };
        self.0.insert(role, route);
        Ok(())
    }

    /// Adds the roles of other processes, at the configured addresses.
    pub(super) fn add_peers(
        &mut self,
        config: &Config,
        roles: &Roles,
        checks: &Checks,
        stop: &CancellationToken,
    ) -> Result<()> {
        let mut tls = None;
        for role in roles.peers() {
            let url = config.peers.of(role);
            let url = url.with_context(|| format!("peers.{role} is not set"))?;
            let urls = Urls::parse(url).with_context(|| format!("peers.{role}"))?;
            if urls.use_tls() && tls.is_none() {
                tls = Some(ClientTls::open(&config.internal_tls.client()).context("internal_tls")?);
            }
            let peer = Peer::follow(
                urls,
                role.as_str(),
                peer::system_resolver(),
                tls.clone(),
                stop.clone(),
            );
            checks.watch_peer(role, &peer);
            self.0.insert(role, peer.route);
        }
        Ok(())
    }

    /// The ways to call a role.
    pub(super) fn to(&self, role: Role) -> Result<Route> {
        self.0
            .get(&role)
            .cloned()
            .with_context(|| format!("this process has no channel to {role}"))
    }
}
