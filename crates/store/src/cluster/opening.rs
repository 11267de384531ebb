//! A cluster engine that opens in the background, for a process that has work to do without it.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;

use super::{
    Cluster, Config, Postgres, Retained, open_devices, process_name, record_stores,
    timelines::ClusterTimelines,
};
use crate::{
    Error, Leases, Metrics, Result, Stores,
    cluster::postgres::PostgresLeases,
    encryption::StorageKeys as _,
    later::{LaterStores, Reason},
};

/// Delay before the next attempt to open.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// An engine that opens in the background. Until PostgreSQL can be used, each call of its stores fails with
/// [`Unavailable`](crate::ErrorKind::Unavailable); those of timelines until Valkey can be used too.
pub struct Opening {
    config: Config,
    stores: LaterStores,
    reason: Reason,
    opened: Arc<Opened>,
    metrics: Metrics,
}

/// What is open.
struct Opened {
    reason: Reason,
    postgres: OnceLock<Postgres>,
    timelines: OnceLock<Arc<ClusterTimelines>>,
}

impl Opening {
    /// An engine of which nothing is open. `reason` is why.
    pub fn new(config: Config, reason: &Error) -> Self {
        let shared = Reason::default();
        shared.set(reason);
        Self {
            config,
            stores: LaterStores::new(&shared),
            opened: Arc::new(Opened {
                reason: shared.clone(),
                postgres: OnceLock::new(),
                timelines: OnceLock::new(),
            }),
            reason: shared,
            metrics: Metrics::default(),
        }
    }

    /// The metrics of the engine, to be registered.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The stores of the engine.
    pub fn stores(&self) -> Stores {
        self.stores.stores(self.opened.clone())
    }

    /// Opens PostgreSQL, then the timelines, as [`Cluster::open`] does, and returns when both are open. Goes on trying
    /// while a server can't be used. Must be called inside of the runtime that uses the engine, and once.
    ///
    /// # Errors
    /// A server that [`Cluster::open`] refuses, or a storage key that [`StorageKeys::check`](crate::encryption::StorageKeys::check)
    /// misses.
    pub async fn open(&self) -> Result<()> {
        let config = &self.config;
        let postgres = self
            .retry(|| Cluster::open_postgres(config, self.metrics.clone()))
            .await?;
        let leases: Arc<dyn Leases> = Arc::new(PostgresLeases::new(postgres.clone()));
        let retained = Retained::new(config, &postgres);
        let devices = open_devices(config, &postgres)?;
        self.retry(|| devices.check()).await?;
        let records = record_stores(config, &postgres, &retained, &devices, Arc::clone(&leases));
        self.stores.set_records(&records);
        let _ = self.opened.postgres.set(postgres.clone());
        tracing::info!("PostgreSQL can be used now");
        let holder = process_name();
        let timelines = self.retry(|| {
            let leases = Arc::clone(&leases);
            ClusterTimelines::open(
                &config.timelines,
                config.timeline_keep_days,
                &postgres,
                leases,
                &holder,
            )
        });
        let timelines = Arc::new(timelines.await?);
        self.stores.timelines.set(timelines.clone());
        self.stores
            .retention
            .set(retained.retention(config, &postgres, &timelines));
        let _ = self.opened.timelines.set(timelines);
        tracing::info!("timelines can be used now");
        Ok(())
    }

    async fn retry<T, F>(&self, mut open: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        loop {
            match open().await {
                Err(error) if error.is_away() => self.reason.set(&error),
                opened => return opened,
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Writes pending deliveries and closes all connections. Later calls fail.
    pub async fn close(&self) {
        if let Some(timelines) = self.opened.timelines.get() {
            timelines.close().await;
        }
        if let Some(postgres) = self.opened.postgres.get() {
            postgres.close().await;
        }
    }
}

#[async_trait]
impl crate::Health for Opened {
    async fn records(&self) -> Result<()> {
        let postgres = self.postgres.get().ok_or_else(|| self.reason.error())?;
        postgres.check().await
    }

    async fn timelines(&self) -> Result<()> {
        let timelines = self.timelines.get().ok_or_else(|| self.reason.error())?;
        timelines.check().await
    }
}
