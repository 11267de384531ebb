//! PostgreSQL and Redis, each with faults of its own.

use std::{collections::HashMap, fs::File, path::PathBuf, time::Duration};

use herald_local_stores::{Postgres, Redis, RedisOptions};

/// The stores of a fleet.
pub(crate) struct Stores {
    pub(crate) postgres: Postgres,
    pub(crate) redis: Redis,
}

impl Stores {
    /// Starts both.
    ///
    /// # Errors
    /// A program is missing, or a server doesn't start.
    pub(crate) async fn start() -> Result<Self, herald_local_stores::Error> {
        Ok(Self {
            postgres: Postgres::start().await?,
            redis: Redis::start(RedisOptions::default()).await?,
        })
    }

    /// Kills Redis and starts it again without its last second of writes, as after a loss of power with an append-only
    /// file that is synced each second. Returns the number of lost bytes.
    pub(crate) async fn lose_last_second_of_redis(&self) -> u64 {
        let synced = self.append_only_files();
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.redis.kill().await.expect("Redis can be killed");
        let mut lost = 0;
        for (path, size) in self.append_only_files() {
            // A file that a rewrite has made since is left alone: it starts with a synced base.
            if let Some(synced) = synced.get(&path).filter(|synced| **synced < size) {
                let file = File::options().write(true).open(&path).expect("a file of Redis");
                file.set_len(*synced).expect("a file can be cut");
                lost += size - synced;
            }
        }
        self.redis.restart().await.expect("Redis starts again");
        lost
    }

    /// Sizes of the append-only files.
    fn append_only_files(&self) -> HashMap<PathBuf, u64> {
        let dir = self.redis.dir().join("appendonlydir");
        let files = std::fs::read_dir(dir).expect("the append-only directory of Redis");
        files
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let size = path.metadata().ok()?.len();
                (path.extension()? == "aof").then_some((path, size))
            })
            .collect()
    }
}
