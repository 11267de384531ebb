//! Makes streams, consumers and the schema without starting a service.

use anyhow::{Context as _, Result};
use herald_mesh::{Difference, Mesh, NatsUser, Topology};
use herald_model::time::Timestamp;
use herald_store::{
    cluster::{Cluster, Migrated},
    migrate::{self, Moved, Progress},
};

use super::{Config, away};

impl Config {
    /// Creates the missing streams and consumers, and updates those that differ. Returns the topology.
    pub(crate) async fn apply_topology(&self) -> Result<Topology> {
        let topology = Topology::new(&self.topology)?;
        let mesh = self.connect_to_administer().await?;
        // Without the store the greatest id of a dead letter is unknown: gateways compare DLQ with it.
        mesh.ensure(&topology.clone().beginning(Timestamp::now(), 0))
            .await
            .context("can't create the streams and consumers")?;
        Ok(topology)
    }

    /// Compares the streams and consumers with the configuration. Returns the topology and the differences.
    pub(crate) async fn verify_topology(&self) -> Result<(Topology, Vec<Difference>)> {
        let topology = Topology::new(&self.topology)?;
        let mesh = self.connect_to_administer().await?;
        let differences = mesh
            .verify(&topology)
            .await
            .context("can't read the streams and consumers")?;
        Ok((topology, differences))
    }

    async fn connect_to_administer(&self) -> Result<Mesh> {
        let url = self.nats.url.expose();
        let config = self.nats.mesh_config(url, &self.topology, &[NatsUser::Topology]);
        let config = config.map_err(anyhow::Error::msg)?;
        let connect = async || Mesh::connect(&config).await.context("can't connect to NATS");
        away::wait(self.start_wait(), connect).await
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
        let migrate = async || {
            let migrated = Cluster::migrate(&self.cluster()).await;
            migrated.context("can't migrate the store")
        };
        away::wait(self.start_wait(), migrate).await
    }
}
