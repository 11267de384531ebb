//! The servers of a benchmark of the cluster engine.

use herald_local_stores::{Postgres, PostgresOptions, Redis, RedisOptions};
use herald_store::cluster::{Config, SecretUrl, TimelinesConfig};

/// A private PostgreSQL with fsync, or the database of `BENCH_POSTGRES_URL`, and a private Redis. Dropping it ends the
/// private servers.
pub(crate) struct Servers {
    _postgres: Option<Postgres>,
    _redis: Redis,
    config: Config,
}

impl Servers {
    pub(crate) async fn start() -> Self {
        let (postgres, url) = if let Ok(url) = std::env::var("BENCH_POSTGRES_URL") {
            (None, url)
        } else {
            let options = PostgresOptions {
                fsync: true,
                ..PostgresOptions::default()
            };
            let started = Postgres::start_with(options).await.expect("start PostgreSQL");
            let url = started.url();
            (Some(started), url)
        };
        let redis = Redis::start(RedisOptions::default()).await.expect("start Redis");
        let config = Config {
            url: SecretUrl::new(url),
            timelines: TimelinesConfig {
                url: SecretUrl::new(redis.url()),
                ..TimelinesConfig::default()
            },
            ..Config::default()
        };
        Self {
            _postgres: postgres,
            _redis: redis,
            config,
        }
    }

    /// The configuration of an engine on these servers.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }
}
