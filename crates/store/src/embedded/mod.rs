//! The embedded engine, on fjall: for one machine and one process.
//!
//! | directory | data | writer |
//! |---|---|---|
//! | `records/` | users, follows, posts, devices, preferences, the ledger | [`database`]: batches with group commit |
//! | `dead_letters/` | dead letters and operations on them | the same |
//! | `totals/` | delivery counts of analytics | the same |
//! | `timelines/` | (follower, post) pairs | [`timelines`]: sorted runs |
//!
//! Each directory is a fjall database. The file `lock` keeps a second process out; the file `format` holds the version
//! of the layout; the file `contents` lists what must not be missing; the file `moved` marks a store whose data is moved
//! to the cluster engine; the file `rebuild-timelines` says that timelines are being rebuilt. `damaged/` has what
//! [`recover`](recover()) and rebuilds replaced.

pub(crate) mod api_keys;
mod backup;
mod blocking;
mod cache;
mod clock;
pub(crate) mod contents;
pub(crate) mod database;
pub(crate) mod databases;
pub(crate) mod dead_letters;
pub(crate) mod devices;
pub(crate) mod dir;
pub(crate) mod erased_timelines;
pub(crate) mod erasures;
mod fault;
pub(crate) mod follows;
mod group_commit;
mod health;
mod journal;
pub(crate) mod leases;
pub(crate) mod ledger;
pub(crate) mod mark;
mod parts;
pub(crate) mod posts;
pub(crate) mod preferences;
mod recover;
mod retention;
pub(crate) mod shared_error;
mod space;
pub(crate) mod stream_marks;
mod tables;
#[cfg(test)]
mod testing;
pub mod timelines;
pub(crate) mod totals;
mod trim_watermark;
mod users;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use self::{
    backup::Backup,
    dir::has_store,
    journal::JournalReport,
    recover::{Recovery, TimelinesState, inspect, recover},
    timelines::EmbeddedTimelines,
};
use self::{
    clock::Clock, contents::Contents, databases::Databases, dir::Dir, erased_timelines::ErasedTimelines,
    fault::Fault, health::Health, ledger::Ledger, mark::Mark, parts::Parts, retention::Retention,
    space::Space,
};
use crate::{
    Metrics, Result, Stores,
    encryption::{Encryption, StorageKeys},
};

/// Configuration of the embedded engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Directory of all data. Created if it does not exist.
    pub data_dir: PathBuf,
    /// Free disk space below which writes are refused with [`ErrorKind::Full`](crate::ErrorKind::Full), MiB. Below
    /// twice this value, no new posts are accepted. The limit keeps the store, and a broker on the same disk, from
    /// running out of space during a write, which only a restart repairs.
    pub disk_free_mb_min: u64,
    /// Block cache of `records/`, MiB.
    pub records_cache_mb: u64,
    /// Block cache of `dead_letters/`, MiB.
    pub dead_letters_cache_mb: u64,
    /// Block cache of `totals/`, MiB.
    pub totals_cache_mb: u64,
    /// Retention of the follow history, hours. Must exceed the time from the first slice of a post to its last one,
    /// because all slices read the followers of the version that the first one pinned.
    pub follow_history_keep_hours: u64,
    /// Retention of request ids, hours. A request that is repeated within this time creates no second post.
    pub request_keep_hours: u64,
    /// Cache of users, MiB for each direction (id to key, key to id).
    pub users_cache_mb: u64,
    /// Cache of differences between follow versions, MiB.
    pub follows_cache_mb: u64,
    /// Cache of posts, MiB.
    pub posts_cache_mb: u64,
    /// Cache of devices, MiB.
    pub devices_cache_mb: u64,
    /// Cache of preferences, MiB.
    pub preferences_cache_mb: u64,
    /// Retention of timelines, days from the acceptance of a post.
    pub timeline_keep_days: u64,
    /// Retention of the ledger, days from the acceptance of a post, and of dead letters, days from their arrival. Takes
    /// about 2 bytes per delivery, and 25 per chunk for analytics.
    pub ledger_keep_days: u64,
    /// Retention of the audit log of operations on dead letters, days. Dead letters are retained as long as the ledger.
    pub dead_letter_operation_keep_days: u64,
    /// Retention of the texts of deleted posts, hours from the deletion.
    pub deleted_text_keep_hours: u64,
    /// Retention of posts, days from their acceptance; at least `ledger_keep_days`. `None`: without end.
    pub post_keep_days: Option<u64>,
    /// Encryption of devices.
    pub encryption: Encryption,
    /// Configuration of timelines.
    pub timelines: timelines::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("herald-data"),
            disk_free_mb_min: 256,
            records_cache_mb: 32,
            dead_letters_cache_mb: 16,
            totals_cache_mb: 8,
            follow_history_keep_hours: 7 * 24,
            request_keep_hours: 24,
            users_cache_mb: 32,
            follows_cache_mb: 16,
            posts_cache_mb: 64,
            devices_cache_mb: 16,
            preferences_cache_mb: 16,
            timeline_keep_days: 30,
            ledger_keep_days: 30,
            dead_letter_operation_keep_days: 365,
            deleted_text_keep_hours: 7 * 24,
            post_keep_days: None,
            encryption: Encryption::default(),
            timelines: timelines::Config::default(),
        }
    }
}

/// The open embedded engine. A directory can be open only once.
pub struct Embedded {
    config: Config,
    retention: Arc<Retention>,
    health: Arc<Health>,
    ledger: Arc<Ledger>,
    parts: Parts,
    databases: Databases,
    timelines: Arc<EmbeddedTimelines>,
    metrics: Metrics,
    fault: Arc<Fault>,
    dir: Dir,
}

/// Interval at which [`Embedded::failed`] looks for faults of fjall's own threads.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

impl Embedded {
    /// Opens the engine and creates missing files. [`Locked`](crate::ErrorKind::Locked) if the directory is open in
    /// another process, [`Corrupt`](crate::ErrorKind::Corrupt) if it has another format,
    /// [`Invalid`](crate::ErrorKind::Invalid) if its data was moved to the cluster engine, or if a key that its devices are
    /// encrypted with is missing.
    pub fn open(config: &Config) -> Result<Self> {
        let dir = Dir::open(&config.data_dir)?;
        match Mark::read(dir.path())? {
            Some(mark) => Err(mark.refusal(dir.path())),
            None => Self::open_in(dir, config),
        }
    }

    /// Opens the engine to move its data, or to finish a move.
    pub(crate) fn open_to_move(config: &Config) -> Result<Self> {
        Self::open_in(Dir::open(&config.data_dir)?, config)
    }

    fn open_in(dir: Dir, config: &Config) -> Result<Self> {
        let space = Arc::new(Space::new(dir.path(), config.disk_free_mb_min));
        let fault = Arc::new(Fault::new(dir.path()));
        timelines::prepare_rebuild(dir.path())?;
        let contents = Contents::open(dir.path())?;
        for database in contents::DATABASES {
            journal::check(dir.path(), database)?;
        }
        let databases = Databases::open(dir.path(), config, &space, &fault, &contents)?;
        let timelines = EmbeddedTimelines::open(
            dir.path(),
            &config.timelines,
            space,
            Arc::clone(&fault),
            &contents,
        )?;
        let timelines = Arc::new(timelines);
        let metrics = Metrics::default();
        let parts = Parts::open(&databases, config, &metrics)?;
        let ledger = Arc::new(Ledger::open(&databases.records)?);
        let erased = ErasedTimelines::open(&databases.records)?;
        timelines.attach(Arc::clone(&ledger), erased)?;
        let clock = Clock::open(&databases.records)?;
        // All keyspaces exist now.
        contents.record([
            ("records", databases.records.fjall()),
            ("dead_letters", databases.dead_letters.fjall()),
            ("totals", databases.totals.fjall()),
            ("timelines", timelines.fjall()),
        ])?;
        let retention = Arc::new(parts.retention(&timelines, &ledger, clock, config, &metrics));
        let health = Arc::new(Health {
            records: Arc::clone(&databases.records),
            timelines: Arc::clone(&timelines),
        });
        Ok(Self {
            config: config.clone(),
            retention,
            health,
            ledger,
            parts,
            databases,
            timelines,
            metrics,
            fault,
            dir,
        })
    }

    /// The metrics of the engine, to be registered.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The keys that devices are encrypted with.
    pub fn storage_keys(&self) -> Arc<dyn StorageKeys> {
        self.parts.devices.clone()
    }

    /// The stores of the engine.
    pub fn stores(&self) -> Stores {
        Stores {
            users: self.parts.users.clone(),
            follows: self.parts.follows.clone(),
            posts: self.parts.posts.clone(),
            devices: self.parts.devices.clone(),
            preferences: self.parts.preferences.clone(),
            timelines: self.timelines.clone(),
            ledger: self.ledger.clone(),
            totals: self.parts.totals.clone(),
            dead_letters: self.parts.dead_letters.clone(),
            erasures: self.parts.erasures.clone(),
            leases: self.parts.leases.clone(),
            api_keys: self.parts.api_keys.clone(),
            stream_marks: self.parts.stream_marks.clone(),
            retention: self.retention.clone(),
            health: self.health.clone(),
        }
    }

    /// Waits until the engine can't be used any more: a write or an fsync failed. The error names the directory, the
    /// cause and the remedy. End the process then: only opening the store again tells what is on its disk.
    pub async fn failed(&self) -> crate::Error {
        let watching = async {
            loop {
                tokio::time::sleep(CHECK_INTERVAL).await;
                let (databases, timelines) = (self.databases.clone(), Arc::clone(&self.timelines));
                let check = move || databases.check().and(timelines.check_disk());
                // A fault is reported there, and ends the wait below.
                let _ = tokio::task::spawn_blocking(check).await;
            }
        };
        tokio::select! {
            error = self.fault.wait() => error,
            () = watching => unreachable!(),
        }
    }

    /// Makes applied writes durable and ends the engine's threads. Later writes are refused.
    pub fn close(&self) -> Result<()> {
        let timelines = self.timelines.close();
        self.databases.close().and(timelines)
    }

    /// The databases, for a move of their rows.
    pub(crate) fn databases(&self) -> &Databases {
        &self.databases
    }

    /// The data directory.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The timelines, for maintenance.
    pub fn timelines(&self) -> &Arc<EmbeddedTimelines> {
        &self.timelines
    }
}

#[cfg(test)]
mod tests {
    use herald_metrics::Shared;
    use herald_model::{
        Channel, FollowVersion, Lane, Post, PostId, PushContent, Recipients, UserId, UserKey, time::Timestamp,
    };

    use super::*;
    use crate::{Archived, ChunkPlan, SlicePlan};

    #[tokio::test]
    async fn posts_past_their_retention_leave_timelines_and_ledger() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            data_dir: dir.path().into(),
            ..Config::default()
        };
        let store = Embedded::open(&config).unwrap();
        let stores = store.stores();
        let now = Timestamp::now();
        let day = Duration::from_hours(24);
        for (id, age) in [(1, 31), (2, 29)] {
            let post = Post {
                id: PostId(id),
                author: UserKey(1),
                author_id: UserId::new("author").unwrap(),
                request_id: format!("request {id}"),
                text: "text".into(),
                links: Vec::new(),
                media_urls: Vec::new(),
                lane: Lane::Normal,
                accepted_at: now.minus(age * day),
                push_ttl: day,
                push: PushContent::default(),
                deleted_at: None,
            };
            stores.posts.archive(&[Archived::Created(post)]).await.unwrap();
            let plan = SlicePlan {
                post: PostId(id),
                author: UserKey(1),
                slice: 0,
                version: FollowVersion(1),
                chunks: vec![ChunkPlan {
                    channel: Channel::Timeline,
                    recipients: Recipients::from_sorted([UserKey(2)]),
                }],
                next_after: None,
            };
            stores.ledger.plan(plan).await.unwrap();
            let delivered = stores
                .timelines
                .deliver(PostId(id), Recipients::from_sorted([UserKey(2)]))
                .await;
            delivered.unwrap().durable.await.unwrap();
        }
        assert_eq!(
            stores.timelines.newest(UserKey(2), None, 10).await.unwrap().posts,
            [PostId(2), PostId(1)]
        );
        let deleted = Archived::Deleted {
            post: PostId(1),
            at: now.minus(8 * day),
        };
        stores.posts.archive(&[deleted]).await.unwrap();
        stores.retention.trim(now).await.unwrap();
        let shared = Shared::new();
        shared.register(|registry| store.metrics().register(registry));
        let exported = shared.open_metrics();
        for line in [
            "herald_store_retention_removed_total{data=\"texts\"} 1",
            "herald_store_retention_removed_total{data=\"posts\"} 0",
        ] {
            assert!(exported.lines().any(|found| found == line), "{line}\n{exported}");
        }
        assert_eq!(
            stores.timelines.newest(UserKey(2), None, 10).await.unwrap().posts,
            [PostId(2)]
        );
        assert!(stores.ledger.counts(PostId(1)).await.unwrap().is_none());
        assert_eq!(
            stores
                .ledger
                .counts(PostId(2))
                .await
                .unwrap()
                .unwrap()
                .timeline
                .targeted,
            1
        );
    }
}
