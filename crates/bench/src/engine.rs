//! The storage engine of the server under test: embedded, or the cluster engine on given or private servers.

use std::path::Path;

use herald_cli::failure::Failure;
use herald_local_stores::{Postgres, PostgresOptions, Redis, RedisOptions};
use herald_runtime::config::Secret;
use herald_store::{
    Stores,
    cluster::{self, Cluster, SecretUrl},
    embedded::{self, Embedded},
    encryption::Encryption,
};

/// Environment of a server for the database and for the timelines. A URL can have a password, so it is never passed on a
/// command line.
const STORE_VARIABLE: &str = "HERALD_STORE__URL";
const TIMELINES_VARIABLE: &str = "HERALD_TIMELINES__URL";

/// The engine to measure.
#[derive(Debug, clap::Args)]
#[group(id = "engine")]
pub(super) struct Args {
    /// Empty PostgreSQL database of the server, instead of its embedded store: postgres://HOST:PORT/DATABASE. A URL with
    /// a password must come from the environment
    #[arg(long, value_name = "URL", env = STORE_VARIABLE, hide_env_values = true, requires = "timelines")]
    store: Option<String>,

    /// Empty Valkey or Redis for the timelines of a --store: redis://HOST:PORT
    #[arg(long, value_name = "URL", env = TIMELINES_VARIABLE, hide_env_values = true, requires = "store")]
    timelines: Option<String>,

    /// Start a private PostgreSQL (which syncs each commit) and a private Redis or Valkey (which syncs each second) of
    /// this machine's programs, and remove them afterwards
    #[arg(long, conflicts_with_all = ["store", "timelines"])]
    cluster: bool,
}

/// The engine of a server.
pub(super) enum Engine {
    /// In the data directory.
    Embedded,
    /// On PostgreSQL and Redis.
    Cluster {
        /// URL of the database.
        store: String,
        /// URL of the timelines.
        timelines: String,
        /// Servers that end with the benchmark.
        private: Option<Box<PrivateServers>>,
    },
}

/// Servers that end with the benchmark.
pub(super) struct PrivateServers {
    postgres: Postgres,
    redis: Redis,
}

/// An open engine, to check what a stopped server left.
pub(super) enum Opened {
    /// The embedded engine.
    Embedded(Embedded),
    /// The cluster engine.
    Cluster(Cluster),
}

impl Args {
    /// Whether the cluster engine is wanted.
    pub(super) fn is_cluster(&self) -> bool {
        self.cluster || self.store.is_some()
    }

    /// Starts private servers if they are wanted.
    pub(super) async fn start(&self) -> Result<Engine, Failure> {
        refuse_password("--store", STORE_VARIABLE, self.store.as_deref())?;
        refuse_password("--timelines", TIMELINES_VARIABLE, self.timelines.as_deref())?;
        if let (Some(store), Some(timelines)) = (&self.store, &self.timelines) {
            return Ok(Engine::Cluster {
                store: store.clone(),
                timelines: timelines.clone(),
                private: None,
            });
        }
        if !self.cluster {
            return Ok(Engine::Embedded);
        }
        let failed = |error: herald_local_stores::Error| {
            let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
            let causes: Vec<String> = causes.map(ToString::to_string).collect();
            Failure::failed(format!(
                "can't start a server for the cluster engine: {error}: {}",
                causes.join(": ")
            ))
        };
        let options = PostgresOptions {
            fsync: true,
            ..PostgresOptions::default()
        };
        let postgres = Postgres::start_with(options).await.map_err(failed)?;
        let redis = Redis::start(RedisOptions::default()).await.map_err(failed)?;
        Ok(Engine::Cluster {
            store: postgres.database("herald").await.map_err(failed)?,
            timelines: redis.url(),
            private: Some(Box::new(PrivateServers { postgres, redis })),
        })
    }
}

/// Refuses a URL with a password if it is on the command line, which other users of the machine can read.
fn refuse_password(flag: &str, variable: &str, url: Option<&str>) -> Result<(), Failure> {
    let Some(url) = url.filter(|url| herald_runtime::config::SecretUrl::new(*url).has_password()) else {
        return Ok(());
    };
    if std::env::args_os().any(|argument| argument.to_string_lossy().ends_with(url)) {
        return Err(Failure::usage(format!(
            "{flag} must not have a password, because other users of this machine can read the command line: set {variable}"
        )));
    }
    Ok(())
}

impl Engine {
    /// Environment of the server.
    pub(super) fn environment(&self) -> Vec<(&'static str, &str)> {
        match self {
            Self::Embedded => Vec::new(),
            Self::Cluster { store, timelines, .. } => vec![
                (STORE_VARIABLE, store),
                (TIMELINES_VARIABLE, timelines),
                // All deliveries are measured, also those to users who never read.
                ("HERALD_TIMELINES__ACTIVE_DAYS", "0"),
            ],
        }
    }

    /// Opens the store of a stopped server.
    pub(super) async fn open(&self, data_dir: &Path) -> herald_store::Result<Opened> {
        match self {
            Self::Embedded => {
                // Devices are encrypted with the key that `herald up` has made in its data directory.
                let key = std::fs::read_to_string(data_dir.join("storage.key")).unwrap_or_default();
                let encryption = Encryption {
                    key: Secret::new(key.trim()),
                    ..Encryption::default()
                };
                let config = embedded::Config {
                    data_dir: data_dir.into(),
                    encryption,
                    ..embedded::Config::default()
                };
                Embedded::open(&config).map(Opened::Embedded)
            }
            Self::Cluster { store, timelines, .. } => {
                let mut config = cluster::Config {
                    url: SecretUrl::new(store),
                    ..cluster::Config::default()
                };
                config.timelines.url = SecretUrl::new(timelines);
                config.timelines.active_days = 0;
                Cluster::open(&config).await.map(Opened::Cluster)
            }
        }
    }

    /// Memory of a private Redis, MB: what it uses for data, and what its process takes.
    pub(super) async fn redis_memory_mb(&self) -> Option<RedisMemory> {
        let Self::Cluster {
            private: Some(private),
            ..
        } = self
        else {
            return None;
        };
        let info = private.redis.text(&["INFO", "memory"]).await.ok()?;
        let value = |name: &str| {
            let line = info
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().parse::<f64>().ok().map(|bytes| bytes / 1e6)
        };
        Some(RedisMemory {
            used_mb: value("used_memory")?,
            dataset_mb: value("used_memory_dataset")?,
            rss_mb: value("used_memory_rss")?,
        })
    }

    /// Process ids of a private PostgreSQL and Redis.
    pub(super) fn pids(&self) -> Option<(u32, u32)> {
        let Self::Cluster {
            private: Some(private),
            ..
        } = self
        else {
            return None;
        };
        Some((private.postgres.pid(), private.redis.pid()))
    }

    /// Size of a private PostgreSQL's and Redis's files, MB.
    pub(super) fn disk_mb(&self) -> f64 {
        let Self::Cluster {
            private: Some(private),
            ..
        } = self
        else {
            return 0.0;
        };
        let bytes = super::server::disk_bytes(private.postgres.dir())
            + super::server::disk_bytes(private.redis.dir());
        bytes as f64 / 1e6
    }
}

/// Memory of Redis, MB.
#[derive(Debug, Clone, Copy, serde::Serialize)]
#[allow(clippy::struct_field_names, reason = "the names are those of the JSON")]
pub(super) struct RedisMemory {
    /// All that Redis has allocated.
    pub(super) used_mb: f64,
    /// That of keys and values.
    pub(super) dataset_mb: f64,
    /// That of the process.
    pub(super) rss_mb: f64,
}

impl Opened {
    pub(super) fn stores(&self) -> Stores {
        match self {
            Self::Embedded(engine) => engine.stores(),
            Self::Cluster(engine) => engine.stores(),
        }
    }

    pub(super) async fn close(&self) -> herald_store::Result<()> {
        match self {
            Self::Embedded(engine) => engine.close(),
            Self::Cluster(engine) => {
                engine.close().await;
                Ok(())
            }
        }
    }
}
