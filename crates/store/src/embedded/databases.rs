//! The databases of an engine that commit in groups, each with threads, journal and memtables of its own: what fills one
//! makes nobody wait who writes to another.

use std::{path::Path, sync::Arc};

use super::{Config, database::Database, space::Space};
use crate::Result;

/// All of them, open.
pub(super) struct Databases {
    /// What a post needs on its way.
    pub(super) records: Arc<Database>,
    /// Dead letters.
    pub(super) dead_letters: Arc<Database>,
    /// What analytics counted.
    pub(super) totals: Arc<Database>,
}

impl Databases {
    /// Opens them in a directory.
    pub(super) fn open(dir: &Path, config: &Config, space: &Arc<Space>) -> Result<Self> {
        let open = |name, cache_mb| Database::open(dir, name, cache_mb, Arc::clone(space)).map(Arc::new);
        Ok(Self {
            records: open("records", config.records_cache_mb)?,
            dead_letters: open("dead_letters", config.dead_letters_cache_mb)?,
            totals: open("totals", config.totals_cache_mb)?,
        })
    }

    /// Makes what was written durable and ends their threads; later writes are refused. Answers with the first error, and
    /// closes the others all the same.
    pub(super) fn close(&self) -> Result<()> {
        let closed = [&self.records, &self.dead_letters, &self.totals].map(|database| database.close());
        closed.into_iter().collect()
    }
}
