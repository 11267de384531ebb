//! Makes streams, consumers and the schema without starting a service.

use anyhow::{Context as _, Result};
use herald_mesh::{Mesh, Topology};
use herald_store::{
    cluster::{Cluster, Migrated},
    migrate::{self, Moved, Progress},
};

use super::Config;

impl Config {
    /// Creates the missing streams and consumers, and updates those that differ. Returns the topology.
    pub(crate) async fn apply_topology(&self) -> Result<Topology> {
        let topology = Topology::new(&self.topology)?;
        let mesh_config = self.nats.mesh_config(self.nats.url.expose(), &self.topology);
        let mesh = Mesh::connect(&mesh_config.map_err(anyhow::Error::msg)?)
            .await
            .context("can't connect to NATS")?;
        mesh.ensure(&topology)
            .await
            .context("can't create the streams and consumers")?;
        Ok(topology)
    }

    /// Moves the data of the embedded store in the data directory to the cluster engine.
    pub(crate) async fn migrate(
        &self,
        batch_rows: usize,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> herald_store::Result<Moved> {
        let from = self.store.embedded(&self.data_dir);
        migrate::run(&from, &self.cluster(), batch_rows, progress).await
    }

    /// Brings the schema of the database up to date.
    pub(crate) async fn migrate_store(&self) -> Result<Migrated> {
        Cluster::migrate(&self.cluster())
            .await
            .context("can't migrate the store")
    }
}
