//! The databases with group commit. Each has its own threads, journal and memtables, so that load on one does not delay
//! writes to another.

use std::{path::Path, sync::Arc};

use parking_lot::RwLock;

use super::{Config, contents::Contents, database::Database, fault::Fault, space::Space};
use crate::{Error, Result};

/// The open databases.
#[derive(Clone)]
pub(crate) struct Databases {
    /// Users, follows, posts, devices, preferences and the ledger.
    pub(crate) records: Arc<Database>,
    /// Dead letters.
    pub(crate) dead_letters: Arc<Database>,
    /// Delivery counts.
    pub(crate) totals: Arc<Database>,
    /// Held for reading by each write.
    pub(super) gate: Arc<RwLock<()>>,
}

impl Databases {
    /// Opens the databases in a directory.
    pub(super) fn open(
        dir: &Path,
        config: &Config,
        space: &Arc<Space>,
        fault: &Arc<Fault>,
        contents: &Contents,
    ) -> Result<Self> {
        let gate = Arc::default();
        let open = |name, cache_mb| {
            let opened = Database::open(
                dir,
                name,
                cache_mb,
                Arc::clone(space),
                Arc::clone(fault),
                Arc::clone(&gate),
            )?;
            contents.check(name, opened.fjall())?;
            Ok::<_, Error>(Arc::new(opened))
        };
        Ok(Self {
            records: open("records", config.records_cache_mb)?,
            dead_letters: open("dead_letters", config.dead_letters_cache_mb)?,
            totals: open("totals", config.totals_cache_mb)?,
            gate,
        })
    }

    /// Reports a fault of fjall's own threads.
    pub(super) fn check(&self) -> Result<()> {
        [&self.records, &self.dead_letters, &self.totals]
            .into_iter()
            .try_for_each(|database| database.check())
    }

    /// Makes applied batches durable and ends the threads. Later writes are refused. Closes all databases even if one
    /// fails, and returns the first error.
    pub(super) fn close(&self) -> Result<()> {
        let closed = [&self.records, &self.dead_letters, &self.totals].map(|database| database.close());
        closed.into_iter().collect()
    }
}
