//! PostgreSQL and Redis, each with faults of its own.

use std::{
    collections::HashMap,
    fs::File,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use harness::Forwarder;
use herald_local_stores::{Postgres, Redis, RedisOptions};

/// Time limit for a replica to follow its primary.
const REPLICATION_LIMIT: Duration = Duration::from_secs(30);
/// Time for which a stale replica has heard nothing.
const STALE_TIME: Duration = Duration::from_millis(1_500);

/// The stores of a fleet.
pub(crate) struct Stores {
    pub(crate) postgres: Postgres,
    /// A primary and its replica.
    redis: [Redis; 2],
    /// Index of the primary.
    primary: AtomicUsize,
    /// Leads to the primary.
    redis_address: Forwarder,
}

/// How a replica of Redis becomes the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailOver {
    /// The primary is killed.
    Crash,
    /// The primary is killed, and the replica lacks its last writes.
    Stale,
    /// Both live. Clients keep their connections to the old primary, which refuses writes from then on.
    SwitchOver,
}

impl Stores {
    /// Starts all servers.
    ///
    /// # Errors
    /// A program is missing, or a server doesn't start.
    pub(crate) async fn start() -> Result<Self, herald_local_stores::Error> {
        let redis = [
            Redis::start(RedisOptions::default()).await?,
            Redis::start(RedisOptions::default()).await?,
        ];
        redis[1].replicate(redis[0].port()).await?;
        Ok(Self {
            postgres: Postgres::start().await?,
            redis_address: Forwarder::start(redis[0].port()).await,
            redis,
            primary: AtomicUsize::new(0),
        })
    }

    /// URL of the primary of Redis, also after a fail-over.
    pub(crate) fn redis_url(&self) -> String {
        format!("redis://{}", self.redis_address.address())
    }

    /// The primary of Redis.
    pub(crate) fn redis(&self) -> &Redis {
        &self.redis[self.primary.load(Ordering::SeqCst)]
    }

    fn replica(&self) -> &Redis {
        &self.redis[1 - self.primary.load(Ordering::SeqCst)]
    }

    /// Makes the replica the primary, and the old primary its replica. Returns the number of killed servers.
    pub(crate) async fn fail_over(&self, how: FailOver) -> u64 {
        self.wait_replicated().await;
        let (old, new) = (self.redis(), self.replica());
        if how == FailOver::Stale {
            new.pause().expect("Redis can be paused");
            tokio::time::sleep(STALE_TIME).await;
        }
        if how != FailOver::SwitchOver {
            old.kill().await.expect("Redis can be killed");
        }
        // What the old primary sent meanwhile is in the buffer of the connection: the replica must not read it.
        if how == FailOver::Stale {
            new.kill().await.expect("Redis can be killed");
            new.restart().await.expect("Redis starts again");
        }
        new.promote().await.expect("a replica can be promoted");
        self.redis_address.lead_to(new.port());
        if how == FailOver::SwitchOver {
            old.replicate(new.port()).await.expect("a primary can be demoted");
        } else {
            self.redis_address.cut();
            old.restart().await.expect("Redis starts again");
            old.replicate(new.port()).await.expect("a primary can be demoted");
        }
        self.primary.fetch_xor(1, Ordering::SeqCst);
        match how {
            FailOver::Crash => 1,
            FailOver::Stale => 2,
            FailOver::SwitchOver => 0,
        }
    }

    /// Kills Redis and starts it again without its last second of writes, as after a loss of power with an append-only
    /// file that is synced each second. Returns the number of lost bytes.
    pub(crate) async fn lose_last_second_of_redis(&self) -> u64 {
        let redis = self.redis();
        let synced = append_only_files(redis);
        tokio::time::sleep(Duration::from_secs(1)).await;
        redis.kill().await.expect("Redis can be killed");
        let mut lost = 0;
        for (path, size) in append_only_files(redis) {
            // A file that a rewrite has made since is left alone: it starts with a synced base.
            if let Some(synced) = synced.get(&path).filter(|synced| **synced < size) {
                let file = File::options().write(true).open(&path).expect("a file of Redis");
                file.set_len(*synced).expect("a file can be cut");
                lost += size - synced;
            }
        }
        redis.restart().await.expect("Redis starts again");
        lost
    }

    async fn wait_replicated(&self) {
        harness::until("the replica of Redis follows", REPLICATION_LIMIT, || async {
            let info = self.replica().text(&["INFO", "replication"]).await;
            info.is_ok_and(|info| info.contains("master_link_status:up"))
        })
        .await;
    }
}

/// Sizes of the append-only files.
fn append_only_files(redis: &Redis) -> HashMap<PathBuf, u64> {
    let dir = redis.dir().join("appendonlydir");
    let files = std::fs::read_dir(dir).expect("the append-only directory of Redis");
    files
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let size = path.metadata().ok()?.len();
            (path.extension()? == "aof").then_some((path, size))
        })
        .collect()
}
