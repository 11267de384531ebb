//! Servers and directory of a move.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use herald_local_stores::{Postgres, Redis, RedisOptions, required};
use herald_store::{
    ErrorKind, Result,
    cluster::{self, SecretUrl},
    embedded::{self, Embedded},
    encryption::Encryption,
    migrate::{self, Moved, Stage},
};
use sqlx::Connection as _;

/// Servers and directory of a move.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) postgres: Postgres,
    pub(crate) redis: Redis,
    pub(crate) to: cluster::Config,
    /// Encryption of the embedded store.
    pub(crate) from: Encryption,
}

impl World {
    /// `None`, after a line that says so, if this machine lacks the programs.
    pub(crate) async fn start() -> Option<Self> {
        let postgres = required("the move of a store", Postgres::start().await)?;
        let redis = Redis::start(RedisOptions::default()).await;
        let redis = required("the move of a store", redis)?;
        let mut to = cluster::Config {
            url: SecretUrl::new(postgres.database("moved").await.unwrap()),
            ..cluster::Config::default()
        };
        to.timelines.url = SecretUrl::new(redis.url());
        Some(Self {
            dir: tempfile::tempdir().unwrap(),
            postgres,
            redis,
            to,
            from: Encryption::default(),
        })
    }

    pub(crate) fn from(&self) -> embedded::Config {
        embedded::Config {
            data_dir: self.dir.path().into(),
            disk_free_mb_min: 0,
            follow_history_keep_hours: 1,
            post_keep_days: Some(30),
            encryption: self.from.clone(),
            ..embedded::Config::default()
        }
    }

    pub(crate) async fn migrate(&self) -> Result<Moved> {
        migrate::run(&self.from(), &self.to, 50, &|_| {}).await
    }

    /// Breaks a move off at the report with this number. `false` if it ended before.
    pub(crate) async fn break_off(&self, at: usize) -> bool {
        let stop = tokio::sync::Notify::new();
        let reports = AtomicUsize::new(0);
        let (from, report) = (self.from(), |_| {
            if reports.fetch_add(1, Ordering::Relaxed) == at {
                stop.notify_one();
            }
        });
        tokio::select! {
            biased;
            () = stop.notified() => true,
            moved = migrate::run(&from, &self.to, 50, &report) => {
                moved.unwrap();
                false
            }
        }
    }

    /// Moves everything, and breaks off before anything is compared.
    pub(crate) async fn move_all(&self) {
        let reached = tokio::sync::Notify::new();
        let from = self.from();
        let report = |progress: migrate::Progress| {
            if progress.stage == Stage::Comparing {
                reached.notify_one();
            }
        };
        tokio::select! {
            biased;
            () = reached.notified() => {}
            moved = migrate::run(&from, &self.to, 50, &report) => panic!("{moved:?}"),
        }
    }

    pub(crate) async fn flush_redis(&self) {
        let client = redis::Client::open(self.redis.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        redis::cmd("FLUSHALL").exec_async(&mut connection).await.unwrap();
    }

    /// Opens the embedded store although its data was moved.
    pub(crate) async fn open_moved_source(&self) -> Embedded {
        std::fs::remove_file(self.dir.path().join("moved")).unwrap();
        open_when_free(&self.from()).await
    }

    pub(crate) async fn sql(&self, statement: &'static str) {
        let mut connection = sqlx::PgConnection::connect(self.to.url.expose()).await.unwrap();
        sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    }
}

/// The reader of an interrupted move ends at its next batch.
async fn open_when_free(config: &embedded::Config) -> Embedded {
    let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
    loop {
        match Embedded::open(config) {
            Err(error) if error.kind() == ErrorKind::Locked => {
                assert!(tokio::time::Instant::now() < deadline, "{error}");
                tokio::task::yield_now().await;
            }
            opened => return opened.unwrap(),
        }
    }
}
