//! The connections of a process to NATS.

use anyhow::{Context as _, Result};
use herald_mesh::Mesh;

use super::{
    Config, away,
    background::{Background, BackgroundRuntime},
    broker::Broker,
    roles::{Role, Roles},
};

/// The connections to NATS. They are expected to end when this is dropped, such as by a start that fails.
pub(super) struct Connections(pub(super) Vec<Mesh>);

impl Connections {
    pub(super) fn expect_end(&self) {
        for connection in &self.0 {
            connection.expect_end();
        }
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.expect_end();
    }
}

/// Connects the process to NATS, and its background threads if one of the roles runs there.
pub(super) async fn connect(
    config: &Config,
    roles: &Roles,
    broker: &Broker,
    metrics: herald_mesh::Metrics,
) -> Result<(Mesh, Option<(BackgroundRuntime, Background)>)> {
    let mesh_config = broker.mesh_config(config, &roles.nats_users())?;
    let connect = async || {
        let connecting = Mesh::connect_with(&mesh_config, metrics.clone());
        connecting.await.context("can't connect to NATS")
    };
    let mesh = away::wait(config.start_wait(), connect).await?;
    if !roles.iter().any(Role::runs_in_background) {
        return Ok((mesh, None));
    }
    let runtime = BackgroundRuntime::start()?;
    let background = runtime.connect(mesh_config, metrics).await?;
    Ok((mesh, Some((runtime, background))))
}
