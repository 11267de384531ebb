//! The embedded engine: fjall, for one machine and one process.
//!
//! | directory | holds | written by |
//! |---|---|---|
//! | `records/` | users, follows, posts, devices, preferences, the ledger | [`database`]: batches, one fsync for many |
//! | `dead_letters/` | dead letters and what was done about them | the same |
//! | `totals/` | what analytics counted | the same |
//! | `timelines/` | (follower, post) | `timelines`: sorted runs |
//!
//! Each is a fjall database. `lock` keeps a second process out and `format` says which version of the layout the directory
//! has.

mod cache;
mod database;
mod databases;
mod dead_letters;
mod devices;
mod dir;
mod follows;
mod group_commit;
mod ledger;
mod parts;
mod posts;
mod preferences;
mod retention;
mod shared_error;
mod space;
#[cfg(test)]
mod testing;
pub mod timelines;
mod totals;
mod trim_watermark;
mod users;

use std::{path::PathBuf, sync::Arc};

use herald_model::time::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::timelines::EmbeddedTimelines;
use self::{
    databases::Databases,
    dir::Dir,
    ledger::Ledger,
    parts::Parts,
    retention::{Retention, RetentionThread},
    space::Space,
};
use crate::{Result, Stores};

/// How the embedded engine is set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where everything is kept; made when it isn't there.
    pub data_dir: PathBuf,
    /// Free disk space below which writes are refused with [`ErrorKind::Full`](crate::ErrorKind::Full), MiB; below twice as
    /// much no more posts are accepted. Running out of space in the middle of a write needs a restart; this makes it not
    /// happen, to the store or to a broker on the same disk.
    pub disk_free_mb_min: u64,
    /// Memory for blocks of `records/` that were read from disk, MiB.
    pub records_cache_mb: u64,
    /// Memory for blocks of `dead_letters/` that were read from disk, MiB.
    pub dead_letters_cache_mb: u64,
    /// Memory for blocks of `totals/` that were read from disk, MiB.
    pub totals_cache_mb: u64,
    /// How long it can be told who followed an author at an earlier moment, hours. Posts that are still on their way need
    /// it.
    pub follow_history_keep_hours: u64,
    /// How long a request id stands for the post it made, hours.
    pub request_keep_hours: u64,
    /// Memory for users, each way between ids and keys, MiB.
    pub users_cache_mb: u64,
    /// Memory for what older versions of followers differ by, MiB.
    pub follows_cache_mb: u64,
    /// Memory for posts, MiB.
    pub posts_cache_mb: u64,
    /// Memory for devices, MiB.
    pub devices_cache_mb: u64,
    /// Memory for preferences, MiB.
    pub preferences_cache_mb: u64,
    /// How long a timeline shows a post, days from its acceptance.
    pub timeline_keep_days: u64,
    /// How long it is known what became of a post's deliveries, days from its acceptance. Some 2 bytes a delivery, and 25
    /// a chunk for analytics.
    pub ledger_keep_days: u64,
    /// How long it is known what was done about dead letters, and by whom, days. The dead letters themselves are kept as long as
    /// the ledger.
    pub dead_letter_operation_keep_days: u64,
    /// Timelines.
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
            timelines: timelines::Config::default(),
        }
    }
}

/// The embedded engine, open. Only one can be open for a directory.
pub struct Embedded {
    retention_thread: RetentionThread,
    retention: Retention,
    ledger: Arc<Ledger>,
    parts: Parts,
    databases: Databases,
    timelines: Arc<EmbeddedTimelines>,
    _dir: Dir,
}

impl Embedded {
    /// Opens the engine, making what isn't there. [`Locked`](crate::ErrorKind::Locked) when another process has it open,
    /// [`Corrupt`](crate::ErrorKind::Corrupt) when the directory is of another format.
    pub fn open(config: &Config) -> Result<Self> {
        let dir = Dir::open(&config.data_dir)?;
        let space = Arc::new(Space::new(dir.path(), config.disk_free_mb_min));
        let databases = Databases::open(dir.path(), config, &space)?;
        let timelines = EmbeddedTimelines::open(&dir.path().join("timelines"), &config.timelines, space)?;
        let timelines = Arc::new(timelines);
        let parts = Parts::open(&databases, config)?;
        let ledger = Arc::new(Ledger::open(&databases.records)?);
        let retention = parts.retention(&timelines, &ledger, config);
        let retention_thread = RetentionThread::start(retention.clone())?;
        Ok(Self {
            ledger,
            retention_thread,
            parts,
            databases,
            timelines,
            retention,
            _dir: dir,
        })
    }

    /// All of its stores.
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
        }
    }

    /// Makes what was written durable and ends the engine's threads. Writes that come later are refused.
    pub fn close(&self) -> Result<()> {
        self.retention_thread.stop();
        let timelines = self.timelines.close();
        self.databases.close().and(timelines)
    }

    /// Forgets what is too old at a moment: follow versions, request ids, timelines' posts, and the ledger's rows, what
    /// analytics knows of chunks and dead letters past their time. The engine does so itself once a minute.
    pub async fn retention(&self, now: Timestamp) -> Result<()> {
        self.retention.run(now).await
    }

    /// The timelines, for their maintenance.
    pub fn timelines(&self) -> &Arc<EmbeddedTimelines> {
        &self.timelines
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use herald_model::{Channel, FollowVersion, Lane, Post, PostId, Recipients, UserId, UserKey};

    use super::*;
    use crate::{Archived, ChunkPlan, SlicePlan};

    #[tokio::test]
    async fn timelines_and_the_ledger_forget_what_is_past_its_time() {
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
                follow_version: FollowVersion(1),
                accepted_at: now.minus(age * day),
                push_ttl: day,
                deleted_at: None,
            };
            stores.posts.archive(&[Archived::Created(post)]).await.unwrap();
            let plan = SlicePlan {
                post: PostId(id),
                slice: 0,
                chunks: vec![ChunkPlan {
                    channel: Channel::Timeline,
                    recipients: Recipients::from_sorted([UserKey(2)]),
                }],
                last: true,
            };
            stores.ledger.plan(&plan).await.unwrap().await.unwrap();
            let durable = stores
                .timelines
                .deliver(PostId(id), Recipients::from_sorted([UserKey(2)]))
                .await;
            durable.unwrap().await.unwrap();
        }
        assert_eq!(
            stores.timelines.newest(UserKey(2), None, 10).await.unwrap(),
            [PostId(2), PostId(1)]
        );
        store.retention(now).await.unwrap();
        assert_eq!(
            stores.timelines.newest(UserKey(2), None, 10).await.unwrap(),
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
