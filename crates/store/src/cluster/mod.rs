//! The cluster engine, on PostgreSQL and Valkey or Redis: for any number of machines and processes.
//!
//! PostgreSQL is the truth for all records: users, follows with their history, posts, devices, preferences, the ledger,
//! totals, dead letters and leases. Timelines are a view in Valkey that can be made again from PostgreSQL at any time.
//! Processes hold no state beyond bounded caches: of rows that never change, and under a lease of users, who can be
//! erased.

mod config;
mod opening;
pub(crate) mod postgres;
mod records;
mod timelines;

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::FutureExt;
use herald_model::{PostId, UserKey};

pub use config::{Config, PostgresConfig};
pub use herald_secret::SecretUrl;
pub use opening::Opening;
pub use postgres::Migrated;
pub(crate) use postgres::{Attempt, Postgres};
use postgres::{
    PostgresApiKeys, PostgresDeadLetters, PostgresDevices, PostgresErasures, PostgresFollows, PostgresLeases,
    PostgresLedger, PostgresPosts, PostgresPreferences, PostgresRetention, PostgresStreamMarks,
    PostgresTotals, PostgresUsers,
};
pub use records::Records;
use timelines::ClusterTimelines;
pub use timelines::{PrimaryClock, TimelinesConfig, timeline_clocks};

use crate::{
    Leases, Metrics, Result, Retention, Stores, embedded::devices::Codec, encryption::StorageKeys,
    later::RecordStores,
};

/// The open cluster engine.
pub struct Cluster {
    postgres: Postgres,
    timelines: Arc<ClusterTimelines>,
    stores: Stores,
    devices: Arc<PostgresDevices>,
    /// The name of this process for the leases of the engine.
    holder: String,
}

impl Cluster {
    /// Connects, and migrates the schema if it is older than this version. Must be called inside of the runtime that
    /// uses the engine.
    ///
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if a server can't be reached or is read-only,
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if the database can't be Herald's: the schema of a newer version, a
    /// schema that is not Herald's, a server that is too old. [`Invalid`](crate::ErrorKind::Invalid) if the
    /// configuration is, or if Valkey would drop timelines.
    /// [`Invalid`](crate::ErrorKind::Invalid), too, while data of an embedded store is being moved into the database.
    pub async fn open(config: &Config) -> Result<Self> {
        let postgres = Self::open_postgres(config, Metrics::default()).await?;
        Self::open_on(postgres, config).await
    }

    async fn open_postgres(config: &Config, metrics: Metrics) -> Result<Postgres> {
        let postgres = Postgres::connect_with(&config.url, &config.postgres, metrics).await?;
        postgres.migrate().await?;
        postgres.check_moved().await?;
        Ok(postgres)
    }

    /// Opens the engine to move the data of an embedded store into it.
    pub(crate) async fn open_to_move(config: &Config) -> Result<Self> {
        let postgres = Postgres::connect(&config.url, &config.postgres).await?;
        postgres.migrate().await?;
        Self::open_on(postgres, config).await
    }

    async fn open_on(postgres: Postgres, config: &Config) -> Result<Self> {
        let leases: Arc<dyn Leases> = Arc::new(PostgresLeases::new(postgres.clone()));
        let process = process_name();
        let timelines = ClusterTimelines::open(
            &config.timelines,
            config.timeline_keep_days,
            &postgres,
            Arc::clone(&leases),
            &process,
        );
        let timelines = Arc::new(timelines.await?);
        let devices = open_devices(config, &postgres)?;
        let stores = stores(config, &postgres, &timelines, &devices, leases);
        Ok(Self {
            postgres,
            timelines,
            stores,
            devices,
            holder: process,
        })
    }

    /// Migrates the schema of the database and returns what was done. Any number of processes can call this at once:
    /// one migrates, the others wait for it.
    pub async fn migrate(config: &Config) -> Result<Migrated> {
        let postgres = Postgres::connect(&config.url, &config.postgres).await?;
        let migrated = postgres.migrate().await;
        postgres.close().await;
        migrated
    }

    /// The metrics of the engine, to be registered.
    pub fn metrics(&self) -> &Metrics {
        self.postgres.metrics()
    }

    /// The stores of the engine.
    pub fn stores(&self) -> Stores {
        self.stores.clone()
    }

    /// The keys that devices are encrypted with.
    pub fn storage_keys(&self) -> Arc<dyn StorageKeys> {
        self.devices.clone()
    }

    /// Records the storage key of this process: before devices are written past its stores.
    pub(crate) async fn record_storage_key(&self) -> Result<()> {
        self.devices.record_key().await
    }

    /// The name of this process for the leases of the engine.
    pub(crate) fn holder(&self) -> &str {
        &self.holder
    }

    /// The connections to PostgreSQL.
    pub(crate) fn postgres(&self) -> &Postgres {
        &self.postgres
    }

    /// Writes whole timelines, posts ascending, of users whose timelines nothing else writes. Users ascend.
    pub(crate) async fn import_timelines(&self, timelines: &[(UserKey, Vec<PostId>)]) -> Result<()> {
        self.timelines.import(timelines).await
    }

    /// Says that all timelines are imported: those without posts are complete too.
    pub(crate) async fn end_import_of_timelines(&self) -> Result<()> {
        self.timelines.end_import().await
    }

    /// What a timeline with these posts, which ascend, shows.
    pub(crate) fn shown(&self, posts: &[PostId]) -> Vec<PostId> {
        self.timelines.shown(posts)
    }

    /// Writes pending deliveries and closes all connections. Later calls fail.
    pub async fn close(&self) {
        self.timelines.close().await;
        self.postgres.close().await;
    }
}

fn stores(
    config: &Config,
    postgres: &Postgres,
    timelines: &Arc<ClusterTimelines>,
    devices: &Arc<PostgresDevices>,
    leases: Arc<dyn Leases>,
) -> Stores {
    let retained = Retained::new(config, postgres);
    let records = record_stores(config, postgres, &retained, devices, leases);
    let health = Health {
        postgres: postgres.clone(),
        timelines: Arc::clone(timelines),
    };
    records.with(
        timelines.clone(),
        retained.retention(config, postgres, timelines),
        Arc::new(health),
    )
}

/// The devices. [`Invalid`](crate::ErrorKind::Invalid) if a storage key is malformed.
fn open_devices(config: &Config, postgres: &Postgres) -> Result<Arc<PostgresDevices>> {
    let codec = Codec::new(&config.encryption, postgres.metrics())?;
    Ok(Arc::new(PostgresDevices::new(postgres, codec)))
}

/// The stores that need PostgreSQL alone.
fn record_stores(
    config: &Config,
    postgres: &Postgres,
    retained: &Retained,
    devices: &Arc<PostgresDevices>,
    leases: Arc<dyn Leases>,
) -> RecordStores {
    let users = Arc::new(PostgresUsers::new(postgres, config.users_cache_mb << 20));
    RecordStores {
        erasures: Arc::new(PostgresErasures::new(postgres, &users)),
        users,
        follows: Arc::clone(&retained.follows) as _,
        posts: Arc::clone(&retained.posts) as _,
        devices: Arc::clone(devices) as _,
        preferences: Arc::new(PostgresPreferences::new(postgres)),
        ledger: Arc::new(PostgresLedger::new(postgres.clone())),
        totals: Arc::new(PostgresTotals::new(postgres.clone())),
        dead_letters: Arc::new(PostgresDeadLetters::new(postgres.clone())),
        leases,
        api_keys: Arc::new(PostgresApiKeys::new(postgres)),
        stream_marks: Arc::new(PostgresStreamMarks::new(postgres)),
    }
}

/// The stores that retention trims itself.
struct Retained {
    follows: Arc<PostgresFollows>,
    posts: Arc<PostgresPosts>,
}

impl Retained {
    fn new(config: &Config, postgres: &Postgres) -> Self {
        let hours = |hours: u64| Duration::from_secs(hours.saturating_mul(3_600));
        Self {
            follows: Arc::new(PostgresFollows::new(
                postgres,
                hours(config.follow_history_keep_hours),
                hours(config.timeline_keep_days.saturating_mul(24)),
            )),
            posts: Arc::new(PostgresPosts::new(
                postgres,
                &config.postgres,
                hours(config.request_keep_hours),
            )),
        }
    }

    fn retention(
        &self,
        config: &Config,
        postgres: &Postgres,
        timelines: &Arc<ClusterTimelines>,
    ) -> Arc<dyn Retention> {
        let view = Arc::clone(timelines);
        let raise_oldest_shown = move |post: PostId| {
            let view = Arc::clone(&view);
            async move { view.raise_oldest_kept(post).await }.boxed()
        };
        Arc::new(PostgresRetention::new(
            postgres,
            config,
            Arc::clone(&self.follows),
            Arc::clone(&self.posts),
            Box::new(raise_oldest_shown),
        ))
    }
}

/// A name for the leases of this process that no other process has, beginning with the host's.
fn process_name() -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_default();
    format!("{host}/{:016x}", RandomState::new().hash_one(std::process::id()))
}

/// The cluster engine's [`Health`](crate::Health).
struct Health {
    postgres: Postgres,
    timelines: Arc<ClusterTimelines>,
}

#[async_trait]
impl crate::Health for Health {
    async fn records(&self) -> Result<()> {
        self.postgres.check().await
    }

    async fn timelines(&self) -> Result<()> {
        self.timelines.check().await
    }
}
