//! The storage engine of the process.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use herald_store::{Stores, cluster::Cluster, embedded::Embedded};

use super::{Config, roles::Roles};

/// The open engine.
#[derive(Clone)]
pub(super) enum Engine {
    /// In the data directory, for one process.
    Embedded(Arc<Embedded>),
    /// On PostgreSQL and Valkey or Redis, shared by processes.
    Cluster(Arc<Cluster>),
    /// None: no role of the process uses the store.
    Absent,
}

impl Engine {
    /// Opens the engine that the configuration names. Creates or migrates what is missing.
    pub(super) async fn open(config: &Config, roles: &Roles) -> Result<Self> {
        if !roles.use_store() {
            return Ok(Self::Absent);
        }
        if config.store.is_cluster() {
            let cluster = Cluster::open(&config.cluster())
                .await
                .context("can't open the store")?;
            return Ok(Self::Cluster(Arc::new(cluster)));
        }
        // Its lock stops a second server before that touches the broker's files.
        let embedded = config.store.embedded(&config.data_dir);
        let store = Embedded::open(&embedded).context("can't open the store")?;
        Ok(Self::Embedded(Arc::new(store)))
    }

    /// The stores of the engine, if there is one.
    pub(super) fn stores(&self) -> Option<Stores> {
        match self {
            Self::Embedded(store) => Some(store.stores()),
            Self::Cluster(store) => Some(store.stores()),
            Self::Absent => None,
        }
    }

    /// Closes the engine, after the services have stopped.
    pub(super) async fn close(&self) -> Result<()> {
        match self {
            Self::Embedded(store) => store.close().context("can't close the store"),
            Self::Cluster(store) => {
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
            ..herald_audit::Limits::default()
        }
    }
}
