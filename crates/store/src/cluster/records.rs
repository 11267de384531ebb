//! The engine without timelines.

use std::sync::Arc;

use async_trait::async_trait;
use herald_model::time::Timestamp;

use super::{Cluster, Config, Postgres, PostgresDevices, Retained, open_devices, record_stores};
use crate::{
    Error, ErrorKind, Leases, Metrics, Result, Retention, Stores, Timelines,
    cluster::postgres::PostgresLeases,
    encryption::StorageKeys,
    later::{Later, Reason},
};

/// The open engine of a process that uses no timelines: it never connects to Valkey.
pub struct Records {
    postgres: Postgres,
    stores: Stores,
    devices: Arc<PostgresDevices>,
}

impl Records {
    /// Connects, and migrates the schema, with the errors of [`Cluster::open`] about PostgreSQL. Must be called inside of
    /// the runtime that uses the engine.
    pub async fn open(config: &Config) -> Result<Self> {
        Self::on(Cluster::open_postgres(config, Metrics::default()).await?, config)
    }

    /// Connects as [`Records::open`] does, and changes nothing: [`Invalid`](ErrorKind::Invalid) if the schema is not
    /// that of this version.
    pub async fn open_unchanged(config: &Config) -> Result<Self> {
        let postgres = Postgres::connect(&config.url, &config.postgres).await?;
        postgres.check_migrated().await?;
        // A process with a cache writes a row about it.
        let uncached = Config {
            users_cache_mb: 0,
            ..config.clone()
        };
        Self::on(postgres, &uncached)
    }

    fn on(postgres: Postgres, config: &Config) -> Result<Self> {
        let devices = open_devices(config, &postgres)?;
        let leases: Arc<dyn Leases> = Arc::new(PostgresLeases::new(postgres.clone()));
        let retained = Retained::new(config, &postgres);
        let reason = Reason::default();
        reason.set(&no_timelines());
        let stores = record_stores(config, &postgres, &retained, &devices, leases).with(
            Arc::new(Later::<dyn Timelines>::new(&reason)),
            Arc::new(Later::<dyn Retention>::new(&reason)),
            Arc::new(Health(postgres.clone())),
        );
        Ok(Self {
            postgres,
            stores,
            devices,
        })
    }

    /// The keys that devices are encrypted with.
    pub fn storage_keys(&self) -> Arc<dyn StorageKeys> {
        self.devices.clone()
    }

    /// The clock of the database.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) if the database doesn't answer.
    pub async fn clock(&self) -> Result<Timestamp> {
        self.postgres.clock().await
    }

    /// The metrics of the engine, to be registered.
    pub fn metrics(&self) -> &Metrics {
        self.postgres.metrics()
    }

    /// The stores of the engine. Calls of the timelines, and of retention, which tells them of its work, fail with
    /// [`Unavailable`](ErrorKind::Unavailable).
    pub fn stores(&self) -> Stores {
        self.stores.clone()
    }

    /// Closes all connections. Later calls fail.
    pub async fn close(&self) {
        self.postgres.close().await;
    }
}

fn no_timelines() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "this process was opened without timelines",
    )
}

struct Health(Postgres);

#[async_trait]
impl crate::Health for Health {
    async fn records(&self) -> Result<()> {
        self.0.check().await
    }

    async fn timelines(&self) -> Result<()> {
        Err(no_timelines())
    }
}
