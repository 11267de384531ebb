//! Makes streams, consumers and the schema without starting a service.

use anyhow::{Context as _, Result};
use herald_mesh::{Difference, Mesh, NatsUser, Topology};
use herald_model::time::Timestamp;
use herald_store::{
    cluster::{Cluster, Migrated, Records},
    embedded::Embedded,
    encryption::{self, Rotated, RotationProgress},
    migrate::{self, Moved, Progress},
};

use super::{Config, away, data_dir, examining::access};

/// Encrypts all devices of a store that no other process has open alone: PostgreSQL, or that of a stopped `herald up`.
pub(crate) async fn rotate_storage_key(
    config: &Config,
    progress: &(dyn Fn(RotationProgress) + Send + Sync),
) -> Result<Rotated> {
    if config.store.is_cluster() {
        let store = Records::open_unchanged(&config.cluster()).await;
        let store = store.context("can't open the store")?;
        let keys = store.storage_keys();
        let rotated = encryption::rotate(&*keys, progress).await;
        store.close().await;
        return Ok(rotated?);
    }
    config.check_store()?;
    data_dir::create_private_files();
    let store = Embedded::open(&config.embedded()?).context("can't open the store")?;
    let rotated = encryption::rotate(&*store.storage_keys(), progress).await;
    store.close().context("can't close the store")?;
    Ok(rotated?)
}

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
        let (config, _) = access(self, NatsUser::Topology)?;
        let connect = async || Mesh::connect(&config).await.context("can't connect to NATS");
        away::wait(self.start_wait(), connect).await
    }

    /// Moves the data of the embedded store in the data directory to the cluster engine.
    pub(crate) async fn migrate(
        &self,
        batch_rows: usize,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> herald_store::Result<Moved> {
        let from = self.embedded();
        let from = from.map_err(|error| {
            herald_store::Error::new(herald_store::ErrorKind::Invalid, format!("{error:#}"))
        })?;
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
