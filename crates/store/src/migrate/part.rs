//! A part of a store, and the batches of its rows.

use std::sync::Arc;

use herald_model::{Device, PostId, UserKey};
use tokio::sync::mpsc;

use super::{
    source::Source,
    table::{Rows, Table},
};
use crate::{Error, ErrorKind, Result};

/// Approximate size at which a batch ends, bytes. It also ends at a number of rows.
const BYTES_MAX: usize = 4 << 20;
/// Maximum number of batches that are read ahead of the writer.
const BATCHES_AHEAD_MAX: usize = 2;

/// A part: rows that are read in the order of their keys in the embedded store.
pub(super) struct Part {
    /// Name, for progress and in the database.
    pub(super) name: &'static str,
    /// The tables that it fills. A table that several parts fill is in the list of each.
    pub(super) tables: &'static [&'static Table],
    /// Estimated number of rows of the embedded store.
    pub(super) estimate: fn(&Source) -> u64,
    /// Reads the rows after a position.
    pub(super) read: fn(&Source, Option<&[u8]>, &mut Batches) -> Result<()>,
}

/// Rows to write together, with the position after them.
pub(super) struct Batch {
    /// By table, in the order of [`Part::tables`].
    pub(super) rows: Vec<Rows>,
    /// Whole timelines, posts ascending.
    pub(super) timelines: Vec<(UserKey, Vec<PostId>)>,
    /// The devices of users, to compare: their rows are encrypted.
    pub(super) devices: Vec<(UserKey, Vec<Device>)>,
    /// The position after the last row, from which an interrupted move continues.
    pub(super) position: Vec<u8>,
    /// Number of rows of the embedded store.
    pub(super) count: u64,
}

/// Collects rows into batches and sends them to the writer.
pub(super) struct Batches {
    tables: &'static [&'static Table],
    sender: mpsc::Sender<Batch>,
    rows_max: usize,
    batch: Batch,
    timelines_bytes: usize,
}

impl Batches {
    fn new(tables: &'static [&'static Table], rows_max: usize, sender: mpsc::Sender<Batch>) -> Self {
        Self {
            tables,
            sender,
            rows_max,
            batch: empty(tables),
            timelines_bytes: 0,
        }
    }

    /// The rows of a table of the part, by its position in [`Part::tables`].
    pub(super) fn rows(&mut self, table: usize) -> &mut Rows {
        &mut self.batch.rows[table]
    }

    /// Adds the timeline of a user.
    pub(super) fn add_timeline(&mut self, user: UserKey, posts: Vec<PostId>) {
        self.timelines_bytes += 8 * posts.len() + 32;
        self.batch.timelines.push((user, posts));
    }

    /// Adds the devices of a user.
    pub(super) fn add_devices(&mut self, user: UserKey, devices: Vec<Device>) {
        self.batch.devices.push((user, devices));
    }

    /// Ends a row of the embedded store: the next one comes after `position`. Sends the batch if it is large enough.
    pub(super) fn end_row(&mut self, position: &[u8]) -> Result<()> {
        self.end_rows(1, position)
    }

    /// Ends several rows.
    pub(super) fn end_rows(&mut self, count: u64, position: &[u8]) -> Result<()> {
        self.batch.count += count;
        self.batch.position.clear();
        self.batch.position.extend_from_slice(position);
        let rows: usize = self.batch.rows.iter().map(Rows::len).sum();
        let bytes: usize = self.batch.rows.iter().map(Rows::bytes).sum();
        if rows >= self.rows_max || bytes + self.timelines_bytes >= BYTES_MAX {
            self.send()?;
        }
        Ok(())
    }

    fn send(&mut self) -> Result<()> {
        self.timelines_bytes = 0;
        let batch = std::mem::replace(&mut self.batch, empty(self.tables));
        self.sender
            .blocking_send(batch)
            .map_err(|_| Error::new(ErrorKind::Unavailable, "the move was interrupted"))
    }

    fn finish(mut self) -> Result<()> {
        if self.batch.position.is_empty() {
            return Ok(());
        }
        self.send()
    }
}

fn empty(tables: &'static [&'static Table]) -> Batch {
    Batch {
        rows: tables.iter().map(|table| Rows::new(table)).collect(),
        timelines: Vec::new(),
        devices: Vec::new(),
        position: Vec::new(),
        count: 0,
    }
}

/// Reads a part on a thread for blocking work, in batches of about `rows_max` rows. The receiver gets the batches; the
/// task returns the result of the reading.
pub(super) fn read(
    source: &Arc<Source>,
    part: &'static Part,
    after: Option<Vec<u8>>,
    rows_max: usize,
) -> (mpsc::Receiver<Batch>, tokio::task::JoinHandle<Result<()>>) {
    let (sender, receiver) = mpsc::channel(BATCHES_AHEAD_MAX);
    let source = Arc::clone(source);
    let reading = tokio::task::spawn_blocking(move || {
        let mut batches = Batches::new(part.tables, rows_max, sender);
        (part.read)(&source, after.as_deref(), &mut batches)?;
        batches.finish()
    });
    (receiver, reading)
}
