//! The engine without timelines.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Cluster, Config, Postgres, Retained, record_stores};
use crate::{
    Error, ErrorKind, Leases, Result, Retention, Stores, Timelines,
    cluster::postgres::PostgresLeases,
    later::{Later, Reason},
};

/// The open engine of a process that uses no timelines: it never connects to Valkey.
pub struct Records {
    postgres: Postgres,
    stores: Stores,
}

impl Records {
    /// Connects, and migrates the schema, with the errors of [`Cluster::open`] about PostgreSQL. Must be called inside of
    /// the runtime that uses the engine.
    pub async fn open(config: &Config) -> Result<Self> {
        let postgres = Cluster::open_postgres(config).await?;
        let leases: Arc<dyn Leases> = Arc::new(PostgresLeases::new(postgres.clone()));
        let retained = Retained::new(config, &postgres);
        let reason = Reason::default();
        reason.set(&no_timelines());
        let stores = record_stores(config, &postgres, &retained, leases).with(
            Arc::new(Later::<dyn Timelines>::new(&reason)),
            Arc::new(Later::<dyn Retention>::new(&reason)),
            Arc::new(Health(postgres.clone())),
        );
        Ok(Self { postgres, stores })
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
