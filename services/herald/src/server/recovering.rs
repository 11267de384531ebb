//! Opens the streams and the store of a stopped mesh for a recovery.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use herald_mesh::{Mesh, NatsUser, Topology};
use herald_recovery::{Recovered, Recovery};

use super::{
    Config, away,
    backup::{self, Manifest, Progress, Target},
    broker::Broker,
    data_dir,
    engine::Engine,
    roles::{Role, Roles},
};

/// The open streams and store.
pub(crate) struct Recovering {
    recovery: Recovery,
    engine: Engine,
    broker: Broker,
}

impl Config {
    /// Checks that the data directory has a store, if the store is in it. Changes nothing.
    pub(crate) fn check_store(&self) -> Result<()> {
        if self.store.is_cluster() {
            return Ok(());
        }
        data_dir::check_store(&self.data_dir, self.nats.is_child())
    }

    /// Checks that the data directory has a store to move. Changes nothing.
    pub(crate) fn check_moved_data_dir(&self) -> Result<()> {
        data_dir::check_store(&self.data_dir, false)
    }
}

impl Recovering {
    /// Opens the store, which excludes a running `herald up`, and starts its nats-server or connects to the one that is
    /// configured.
    pub(crate) async fn start(config: &Config) -> Result<Self> {
        data_dir::create_private_files();
        // Timelines are no part of it.
        let roles: Roles = [Role::Archive].into_iter().collect();
        let engine = Engine::open(config, &roles).await?;
        let stores = engine.stores().context("the archive has a store")?;
        let mut config = config.clone();
        // Nobody else connects to a nats-server that is started for the recovery.
        config.nats.port = 0;
        let broker = Broker::start(&config).await?;
        let topology = Topology::new(&config.topology)?;
        let mesh_config = broker.mesh_config(&config, &[NatsUser::Topology])?;
        let connect = async || Mesh::connect(&mesh_config).await.context("can't connect to NATS");
        let mesh = away::wait(config.start_wait(), connect).await?;
        Ok(Self {
            recovery: Recovery {
                mesh,
                topology: Arc::new(topology),
                stores,
            },
            engine,
            broker,
        })
    }

    pub(crate) fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// Writes a backup into a directory that doesn't exist or is empty.
    pub(crate) async fn backup(
        &self,
        config: &Config,
        dir: &Path,
        progress: impl Fn(Progress),
    ) -> Result<Manifest> {
        let Recovery { mesh, topology, .. } = &self.recovery;
        let data_dir = (!config.store.is_cluster()).then_some(&*config.data_dir);
        let target = Target::prepare(dir, data_dir)?;
        target
            .write(mesh, topology, &self.engine, data_dir, progress)
            .await
    }

    /// Creates the streams of a backup, archives the posts that only POSTS has, and lets all streams begin anew: they are
    /// older than the store.
    pub(crate) async fn restore(&self, dir: &Path, manifest: &Manifest) -> Result<Recovered> {
        backup::restore_streams(&self.recovery.mesh, dir, manifest).await?;
        Ok(self.recovery.run_after_restore().await?)
    }

    /// Closes the store and stops the nats-server that was started.
    pub(crate) async fn stop(self) -> Result<()> {
        let Self {
            recovery,
            engine,
            broker,
        } = self;
        recovery.mesh.expect_end();
        // Its connections end before the server that they belong to.
        drop(recovery);
        let store = engine.close().await;
        store.and(broker.stop().await)
    }
}
