//! The embedded engine: fjall, for one machine and one process.
//!
//! | directory | holds | written by |
//! |---|---|---|
//! | `records/` | everything but timelines, one fjall database | [`records`]: batches, one fsync for many |
//! | `timelines/` | (follower, post), one fjall database | `timelines`: sorted runs |
//!
//! `lock` keeps a second process out and `format` says which version of the layout the directory has.

mod dir;
mod records;
mod space;

use std::{path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use self::{dir::Dir, records::Records, space::Space};
use crate::Result;

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
}

impl Default for Config {
    fn default() -> Self {
        Self { data_dir: PathBuf::from("herald-data"), disk_free_mb_min: 256, records_cache_mb: 32 }
    }
}

/// The embedded engine, open. Only one can be open for a directory.
pub struct Embedded {
    records: Arc<Records>,
    _dir: Dir,
}

impl Embedded {
    /// Opens the engine, making what isn't there. [`Locked`](crate::ErrorKind::Locked) when another process has it open,
    /// [`Corrupt`](crate::ErrorKind::Corrupt) when the directory is of another format.
    pub fn open(config: &Config) -> Result<Self> {
        let dir = Dir::open(&config.data_dir)?;
        let space = Arc::new(Space::new(dir.path(), config.disk_free_mb_min));
        let records = Arc::new(Records::open(&dir.path().join("records"), config.records_cache_mb, space)?);
        Ok(Self { records, _dir: dir })
    }

    /// Makes what was written durable and ends the engine's threads. Writes that come later are refused.
    pub fn close(&self) -> Result<()> {
        self.records.close()
    }
}
