//! The storage engine of the process.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use herald_runtime::{metrics::Registry, telemetry::error_chain};
use herald_store::{
    Stores,
    cluster::{Cluster, Opening, Records},
    embedded::Embedded,
    encryption::StorageKeys,
};
use tokio_util::sync::CancellationToken;

use super::{Config, away, roles::Roles};

/// The open engine.
#[derive(Clone)]
pub(super) enum Engine {
    /// In the data directory, for one process.
    Embedded(Arc<Embedded>),
    /// On PostgreSQL and Valkey or Redis, shared by processes.
    Cluster(Arc<Cluster>),
    /// On PostgreSQL and Valkey or Redis, not open yet, because a server is away.
    Opening(Arc<Opening>),
    /// On PostgreSQL, shared by processes: no role of this one uses timelines.
    Records(Arc<Records>),
    /// None: no role of the process uses the store.
    Absent,
}

impl Engine {
    /// Opens the engine that the configuration names. Creates or migrates what is missing.
    ///
    /// A gateway accepts posts without the store, so a process that is nothing else starts while the store is away.
    pub(super) async fn open(config: &Config, roles: &Roles) -> Result<Self> {
        if !roles.use_store() {
            return Ok(Self::Absent);
        }
        if config.store.is_cluster() {
            return open_cluster(config, roles).await;
        }
        // Its lock stops a second server before that touches the broker's files.
        let embedded = config.embedded()?;
        let store = Embedded::open(&embedded).context("can't open the store")?;
        Ok(Self::Embedded(Arc::new(store)))
    }

    /// The stores of the engine, if there is one.
    pub(super) fn stores(&self) -> Option<Stores> {
        match self {
            Self::Embedded(store) => Some(store.stores()),
            Self::Cluster(store) => Some(store.stores()),
            Self::Opening(store) => Some(store.stores()),
            Self::Records(store) => Some(store.stores()),
            Self::Absent => None,
        }
    }

    /// The keys that devices are encrypted with; `None` of an engine that is not open.
    pub(super) fn storage_keys(&self) -> Option<Arc<dyn StorageKeys>> {
        match self {
            Self::Embedded(store) => Some(store.storage_keys()),
            Self::Cluster(store) => Some(store.storage_keys()),
            Self::Records(store) => Some(store.storage_keys()),
            Self::Opening(_) | Self::Absent => None,
        }
    }

    /// Logs the key that devices are encrypted with, or that there is none.
    pub(super) fn report_encryption(&self, config: &Config, roles: &Roles) -> Result<()> {
        let encryption = match self {
            Self::Embedded(_) => config.embedded()?.encryption,
            _ => config.store.encryption.clone(),
        };
        match encryption.key_id() {
            _ if !roles.use_devices() => {}
            Some(key_id) => tracing::info!(%key_id, "devices are encrypted with the storage key"),
            None => tracing::info!(
                "devices are stored as they are, with their endpoints and secrets: set store.encryption.key to encrypt them"
            ),
        }
        Ok(())
    }

    /// Registers the metrics of the engine. The stores that the services get must be observed with them.
    pub(super) fn register_metrics(&self, registry: &mut Registry) -> herald_store::Metrics {
        let metrics = match self {
            Self::Cluster(store) => store.metrics(),
            Self::Opening(store) => store.metrics(),
            Self::Records(store) => store.metrics(),
            Self::Absent => return herald_store::Metrics::default(),
            Self::Embedded(store) => {
                let metrics = store.metrics().clone();
                metrics.register(registry);
                return metrics;
            }
        };
        metrics.register_cluster(registry);
        metrics.clone()
    }

    /// Opens an engine that is not open yet, and returns after the shutdown. `None` for an engine that is open.
    pub(super) fn finish_opening(
        &self,
        shutdown: CancellationToken,
    ) -> Option<impl Future<Output = herald_store::Result<()>> + use<>> {
        let Self::Opening(store) = self else { return None };
        let store = Arc::clone(store);
        Some(async move {
            let opened = shutdown.run_until_cancelled(store.open()).await;
            opened.unwrap_or(Ok(()))?;
            shutdown.cancelled().await;
            Ok(())
        })
    }

    /// Watches the engine of this process alone: returns the fault that ends the process, or after the shutdown. `None`
    /// for an engine that is shared: its servers end their faults themselves.
    pub(super) fn watch(
        &self,
        shutdown: CancellationToken,
    ) -> Option<impl Future<Output = herald_store::Result<()>> + use<>> {
        let Self::Embedded(store) = self else { return None };
        let store = Arc::clone(store);
        Some(async move {
            match shutdown.run_until_cancelled(store.failed()).await {
                Some(fault) => Err(fault),
                None => Ok(()),
            }
        })
    }

    /// Closes the engine, after the services have stopped.
    pub(super) async fn close(&self) -> Result<()> {
        match self {
            Self::Embedded(store) => store.close().context("can't close the store"),
            Self::Cluster(store) => {
                store.close().await;
                Ok(())
            }
            Self::Opening(store) => {
                store.close().await;
                Ok(())
            }
            Self::Records(store) => {
                store.close().await;
                Ok(())
            }
            Self::Absent => Ok(()),
        }
    }
}

impl Config {
    /// The limits of the timelines, for audits.
    pub(super) fn audit_limits(&self) -> herald_audit::Limits {
        let days = self.store.timeline_keep_days.min(self.store.ledger_keep_days);
        herald_audit::Limits {
            timeline_entries_max: if self.store.is_cluster() {
                self.timelines.entries_max
            } else {
                self.store.timelines.entries_max
            },
            timeline_age_max: Duration::from_hours(24 * days),
            post_age_max: self
                .store
                .post_keep_days
                .map(|days| Duration::from_hours(24 * days)),
            ..herald_audit::Limits::default()
        }
    }
}

async fn open_cluster(config: &Config, roles: &Roles) -> Result<Engine> {
    let cluster = config.cluster();
    let open = async || {
        let engine = if roles.use_timelines() {
            Engine::Cluster(Arc::new(Cluster::open(&cluster).await?))
        } else {
            Engine::Records(Arc::new(Records::open(&cluster).await?))
        };
        if let Some(keys) = engine.storage_keys().filter(|_| roles.use_devices()) {
            keys.remove_lost().await?;
            keys.check().await?;
        }
        Ok(engine)
    };
    let open = async || match open().await {
        Err(error) if herald_store::Error::is_away(&error) && roles.is_gateway_alone() => {
            tracing::warn!(
                error = error_chain(&error),
                "the store can't be opened yet; the gateway starts without it"
            );
            Ok(Engine::Opening(Arc::new(Opening::new(cluster.clone(), &error))))
        }
        opened => opened.context("can't open the store"),
    };
    away::wait(config.start_wait(), open).await
}
