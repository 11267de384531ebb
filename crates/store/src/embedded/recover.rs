//! Recovery of a store with damaged files, while no process has it open.

use std::path::Path;

use super::{
    Config,
    dir::Dir,
    journal::{self, JournalReport},
    timelines,
};
use crate::{Error, ErrorKind, Result};

/// What [`recover`] found and did, or [`inspect`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The damaged journals, of each database the oldest first.
    pub journals: Vec<JournalReport>,
    /// Whether timelines can be read. If not, the next start moves them to the directory `damaged`, and rebuilds them from
    /// the ledger while it serves calls.
    pub timelines: TimelinesState,
}

/// Whether the timelines can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimelinesState {
    /// All of them.
    Intact,
    /// Not all of them: a block is damaged.
    Damaged,
    /// None: their database, or a part of it, is missing.
    Missing,
    /// It is not known, because their journal is damaged.
    Unknown,
}

impl Recovery {
    /// Whether nothing is damaged.
    pub fn is_intact(&self) -> bool {
        self.journals.is_empty() && self.timelines == TimelinesState::Intact
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
    let dir = open(config)?;
    let journals = journal::recover(dir.path())?;
    let timelines = timelines::check(dir.path(), &config.timelines)?;
    if timelines != TimelinesState::Intact {
        timelines::request_rebuild(dir.path())?;
    }
    Ok(Recovery { journals, timelines })
}

/// Checks as [`recover`] does, and recovers nothing.
pub fn inspect(config: &Config) -> Result<Recovery> {
    let dir = open(config)?;
    let journals = journal::inspect(dir.path())?;
    // fjall would cut a damaged journal.
    let timelines = if journals.iter().any(|journal| journal.database == "timelines") {
        TimelinesState::Unknown
    } else {
        timelines::check(dir.path(), &config.timelines)?
    };
    Ok(Recovery { journals, timelines })
}

/// Locks the directory of a store.
fn open(config: &Config) -> Result<Dir> {
    let data_dir: &Path = &config.data_dir;
    if !data_dir.join("format").exists() {
        let message = format!("there is no store in the data directory {}", data_dir.display());
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    Dir::open(data_dir)
}
