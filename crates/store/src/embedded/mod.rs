//! The embedded engine: fjall, for one machine and one process.
//!
//! | directory | holds | written by |
//! |---|---|---|
//! | `records/` | everything but timelines, one fjall database | [`records`]: batches, one fsync for many |
//! | `timelines/` | (follower, post), one fjall database | `timelines`: sorted runs |
//!
//! `lock` keeps a second process out and `format` says which version of the layout the directory has.

mod cache;
mod devices;
mod dir;
mod failure;
mod follows;
mod ledger;
mod maintenance;
mod parts;
mod posts;
mod preferences;
mod records;
mod rounds;
mod space;
#[cfg(test)]
mod testing;
pub mod timelines;
mod totals;
mod users;
mod varint;

use std::{path::PathBuf, sync::Arc};

use herald_model::time::Micros;
use serde::{Deserialize, Serialize};

pub use self::timelines::EmbeddedTimelines;
use self::{
    dir::Dir, ledger::Ledger, maintenance::Maintenance, parts::Parts, records::Records, space::Space,
};
use crate::{Result, Stores};

/// How the embedded engine is set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where everything is kept; made when it isn't there.
    pub data_dir: PathBuf,
    /// Free disk space below which writes are refused with [`ErrorKind::Full`](crate::ErrorKind::Full), MiB. Running out of
    /// space in the middle of a write needs a restart; this makes it not happen.
    pub disk_free_mb_min: u64,
    /// Memory for blocks of `records/` that were read from disk, MiB.
    pub records_cache_mb: u64,
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
    /// Timelines.
    pub timelines: timelines::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("herald-data"),
            disk_free_mb_min: 256,
            records_cache_mb: 32,
            follow_history_keep_hours: 7 * 24,
            request_keep_hours: 24,
            users_cache_mb: 32,
            follows_cache_mb: 16,
            posts_cache_mb: 64,
            devices_cache_mb: 16,
            preferences_cache_mb: 16,
            timelines: timelines::Config::default(),
        }
    }
}

/// The embedded engine, open. Only one can be open for a directory.
pub struct Embedded {
    maintenance: Maintenance,
    ledger: Arc<Ledger>,
    parts: Parts,
    records: Arc<Records>,
    timelines: Arc<EmbeddedTimelines>,
    _dir: Dir,
}

impl Embedded {
    /// Opens the engine, making what isn't there. [`Locked`](crate::ErrorKind::Locked) when another process has it open,
    /// [`Corrupt`](crate::ErrorKind::Corrupt) when the directory is of another format.
    pub fn open(config: &Config) -> Result<Self> {
        let dir = Dir::open(&config.data_dir)?;
        let space = Arc::new(Space::new(dir.path(), config.disk_free_mb_min));
        let records = Records::open(
            &dir.path().join("records"),
            config.records_cache_mb,
            Arc::clone(&space),
        )?;
        let timelines = EmbeddedTimelines::open(&dir.path().join("timelines"), &config.timelines, space)?;
        let records = Arc::new(records);
        let parts = Parts::open(&records, config)?;
        let maintenance = Maintenance::start(parts.chores())?;
        Ok(Self {
            ledger: Arc::new(Ledger::open(&records)?),
            maintenance,
            parts,
            records,
            timelines: Arc::new(timelines),
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
        }
    }

    /// Makes what was written durable and ends the engine's threads. Writes that come later are refused.
    pub fn close(&self) -> Result<()> {
        self.maintenance.stop();
        self.timelines.close().and(self.records.close())
    }

    /// Forgets what is too old at a moment: follow versions and request ids past their time. The engine does so itself once
    /// a minute.
    pub async fn maintenance(&self, now: Micros) -> Result<()> {
        self.parts.chores().run(now).await
    }

    /// The timelines, for their maintenance.
    pub fn timelines(&self) -> &Arc<EmbeddedTimelines> {
        &self.timelines
    }
}
