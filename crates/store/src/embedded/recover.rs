//! Recovery of a store with damaged files, while no process has it open.

use std::path::Path;

use super::{
    Config,
    dir::Dir,
    journal::{self, JournalReport},
    timelines,
};
use crate::{Error, ErrorKind, Result};

/// What [`recover`] found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The damaged journals, of each database the oldest first.
    pub journals: Vec<JournalReport>,
    /// Whether timelines can't be read: the next start moves them to the directory `damaged`, and rebuilds them from the
    /// ledger while it serves calls.
    pub rebuilds_timelines: bool,
}

impl Recovery {
    /// Whether nothing was damaged.
    pub fn is_intact(&self) -> bool {
        self.journals.is_empty() && !self.rebuilds_timelines
    }
}

/// Checks the embedded store in a data directory, and recovers what is damaged.
///
/// Each damaged journal is kept in the directory `damaged`, and replaced by one with all batches that can be read, those
/// after the damage included: a later batch refers to what earlier ones assigned, such as the keys of users, and these
/// must never be assigned again. What the lost batch had is lost: run `herald audit` after the next start. Timelines of
/// which a block can't be read are rebuilt by the next start.
///
/// Reads all timelines, so it takes some seconds a gigabyte. [`Locked`](ErrorKind::Locked) while the store is open,
/// [`Invalid`](ErrorKind::Invalid) if there is no store. Safe to repeat after an interruption.
pub fn recover(config: &Config) -> Result<Recovery> {
    let data_dir: &Path = &config.data_dir;
    if !data_dir.join("format").exists() {
        let message = format!("there is no store in the data directory {}", data_dir.display());
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let dir = Dir::open(data_dir)?;
    let journals = journal::recover(dir.path())?;
    let rebuilds_timelines = timelines::is_damaged(dir.path(), &config.timelines)?;
    if rebuilds_timelines {
        timelines::request_rebuild(dir.path())?;
    }
    Ok(Recovery {
        journals,
        rebuilds_timelines,
    })
}
