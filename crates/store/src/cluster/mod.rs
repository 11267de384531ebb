//! The cluster engine, on PostgreSQL and Valkey or Redis: for any number of machines and processes.
//!
//! PostgreSQL is the truth for all records: users, follows with their history, posts, devices, preferences, the ledger,
//! totals, dead letters and leases. Timelines are a view in Valkey that can be made again from PostgreSQL at any time.
//! Processes hold no state beyond bounded caches of rows that never change.

mod config;
mod postgres;
mod secret;
mod timelines;

pub use config::{Config, PostgresConfig};
pub use postgres::Migrated;
use postgres::Postgres;
pub use secret::SecretUrl;
pub use timelines::TimelinesConfig;

use crate::Result;

/// The open cluster engine.
pub struct Cluster {
    postgres: Postgres,
}

impl Cluster {
    /// Connects, and migrates the schema if it is older than this version.
    ///
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if a server can't be reached,
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if the database can't be Herald's: the schema of a newer version, a
    /// schema that is not Herald's, a server that is too old or read-only. [`Invalid`](crate::ErrorKind::Invalid) if
    /// the configuration is.
    pub async fn open(config: &Config) -> Result<Self> {
        let postgres = Postgres::connect(&config.url, &config.postgres).await?;
        postgres.migrate().await?;
        Ok(Self { postgres })
    }

    /// Migrates the schema of the database and returns what was done. Any number of processes can call this at once:
    /// one migrates, the others wait for it.
    pub async fn migrate(config: &Config) -> Result<Migrated> {
        let postgres = Postgres::connect(&config.url, &config.postgres).await?;
        let migrated = postgres.migrate().await;
        postgres.close().await;
        migrated
    }

    /// Closes all connections. Later calls fail.
    pub async fn close(&self) {
        self.postgres.close().await;
    }
}
