//! The move of an installation from the embedded engine to the cluster engine: `herald migrate`.
//!
//! The rows of each part are read in the order of their keys and written in batches. The position after a batch is
//! committed with its rows, and an interrupted move continues from there. When all parts are written, all rows are read
//! once more and compared with what the database has, the tables are counted, and samples are read through the traits
//! of both engines.
//!
//! # Invariants
//!
//! - From the begin of a move the embedded store is marked, and `herald up` refuses it: what it would accept would not be
//!   moved.
//! - Until the move is finished, the cluster engine refuses to start on the database, which has only a part of the data.
//! - What is moved depends on the embedded store alone, never on where the move was interrupted, so that it can be read
//!   again and compared.
//! - Ids, versions, revisions and tokens stay as they are: messages in the streams name them.

mod accounts;
mod compare;
mod dead_letters;
mod derivable;
mod derivable_cache;
mod follows;
mod ledger;
mod part;
mod parts;
mod posts;
mod source;
mod table;
mod target;
mod timelines;
mod totals;

use std::{collections::BTreeMap, sync::Arc};

pub use self::compare::{Compared, compare};
use self::{
    part::{Batch, Part},
    parts::PARTS,
    source::Source,
    target::{MoveState, PartState, Target},
};
use crate::{
    Error, ErrorKind, Result,
    cluster::{self, Cluster},
    embedded,
};

/// Number of items of each kind that are compared through the traits.
const SAMPLE: usize = 1_000;

/// Number of users whose devices are compared at a time.
const DEVICES_PER_READ: usize = 1_000;

/// Default number of rows in a batch.
pub const BATCH_ROWS: usize = 20_000;

/// The stage of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Writes the rows to the cluster engine.
    Moving,
    /// Compares the rows of both engines.
    Comparing,
}

/// How far a move is.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// The stage.
    pub stage: Stage,
    /// The part of the data.
    pub part: &'static str,
    /// Rows of the part so far.
    pub rows: u64,
    /// Estimated number of rows of the part.
    pub rows_estimated: u64,
}

/// A part that was moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MovedPart {
    /// Name of the part.
    pub name: &'static str,
    /// Number of rows of the part in the embedded store.
    pub rows: u64,
}

/// What a move did.
#[derive(Debug, Clone)]
pub struct Moved {
    /// The parts, in the order in which they were moved.
    pub parts: Vec<MovedPart>,
    /// Number of rows that were compared with those of PostgreSQL.
    pub rows_compared: u64,
    /// What was compared through the traits.
    pub compared: Compared,
    /// Whether the move was finished before.
    pub was_finished: bool,
}

/// Moves an embedded store to the cluster engine in batches of about `batch_rows` rows, or continues an interrupted move.
///
/// [`Locked`](ErrorKind::Locked) if a process uses the embedded store. [`Invalid`](ErrorKind::Invalid) if there is none,
/// or if the database has other data. [`Corrupt`](ErrorKind::Corrupt) if a row of the embedded store can't be decoded, or
/// if the database differs from it in the end; the message names the row.
pub async fn run(
    from: &embedded::Config,
    to: &cluster::Config,
    batch_rows: usize,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Moved> {
    let (opening, encryption) = (from.clone(), to.encryption.clone());
    let source = tokio::task::spawn_blocking(move || Source::open(&opening, &encryption)).await;
    let source = source.map_err(|error| {
        Error::with_source(ErrorKind::Corrupt, "the embedded store can't be opened", error)
    })??;
    let source = Arc::new(source);
    let cluster = Cluster::open_to_move(to).await?;
    let target = Target::new(cluster);
    let moved = run_between(&source, &target, batch_rows, progress).await;
    target.close().await;
    let closed = source.close();
    let moved = moved?;
    closed?;
    Ok(moved)
}

async fn run_between(
    source: &Arc<Source>,
    target: &Target,
    batch_rows: usize,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Moved> {
    let was_marked = source.is_marked()?;
    let mark = source.mark()?;
    let state = match target.begin(&mark).await {
        Ok(state) => state,
        Err(error) => {
            // Nothing was written, so the embedded store can be used again.
            if !was_marked && error.kind() == ErrorKind::Invalid {
                source.unmark()?;
            }
            return Err(error);
        }
    };
    if state == MoveState::Finished {
        source.mark_finished(&mark)?;
        return Ok(Moved {
            parts: moved_parts(target).await?,
            rows_compared: 0,
            compared: Compared::default(),
            was_finished: true,
        });
    }
    target.cluster().record_storage_key().await?;
    for part in &PARTS {
        move_part(source, target, part, batch_rows, progress).await?;
    }
    target.set_counters(source).await?;
    target.analyze().await?;
    let rows_compared = compare_rows(source, target, batch_rows, progress).await?;
    let (old, new) = (source.stores(), target.cluster().stores());
    let compared = compare(&old, &new, Some(SAMPLE)).await?;
    let parts = moved_parts(target).await?;
    can_fail!("store.move.finish");
    target.finish().await?;
    can_fail!("store.move.finished");
    source.mark_finished(&mark)?;
    Ok(Moved {
        parts,
        rows_compared,
        compared,
        was_finished: false,
    })
}

async fn moved_parts(target: &Target) -> Result<Vec<MovedPart>> {
    let mut parts = Vec::with_capacity(PARTS.len());
    for part in &PARTS {
        parts.push(MovedPart {
            name: part.name,
            rows: target.part(part).await?.rows,
        });
    }
    Ok(parts)
}

/// Moves the rest of a part.
async fn move_part(
    source: &Arc<Source>,
    target: &Target,
    part: &'static Part,
    batch_rows: usize,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<()> {
    let mut state = target.part(part).await?;
    let rows_estimated = (part.estimate)(source);
    let report = |state: &PartState| {
        progress(Progress {
            stage: Stage::Moving,
            part: part.name,
            rows: state.rows,
            rows_estimated: rows_estimated.max(state.rows),
        });
    };
    report(&state);
    if state.is_done {
        return Ok(());
    }
    let (mut batches, reading) = part::read(source, part, state.position.clone(), batch_rows);
    while let Some(batch) = batches.recv().await {
        can_fail!("store.move.batch");
        target.write(part, &batch, &mut state).await?;
        can_fail!("store.move.written");
        report(&state);
    }
    ended(part, reading.await)?;
    target.end_part(part, &mut state).await
}

fn ended(part: &Part, reading: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    reading.unwrap_or_else(|error| {
        let message = format!("the reading of the {} ended early", part.name);
        Err(Error::with_source(ErrorKind::Corrupt, message, error))
    })
}

/// Reads all rows again and compares them with those of PostgreSQL. Returns their number.
async fn compare_rows(
    source: &Arc<Source>,
    target: &Target,
    batch_rows: usize,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<u64> {
    let mut compared = 0;
    for part in &PARTS {
        let rows_estimated = (part.estimate)(source);
        let mut rows = 0;
        let mut by_table: BTreeMap<usize, u64> = BTreeMap::new();
        let (mut batches, reading) = part::read(source, part, None, batch_rows);
        while let Some(batch) = batches.recv().await {
            if let Some(difference) = target.first_difference(part, &batch).await? {
                return Err(differs(part, &difference));
            }
            compare_timelines(target, part, &batch).await?;
            compare_devices(target, part, &batch).await?;
            for (index, of_table) in batch.rows.iter().enumerate() {
                *by_table.entry(index).or_default() += of_table.len() as u64;
            }
            rows += batch.count;
            progress(Progress {
                stage: Stage::Comparing,
                part: part.name,
                rows,
                rows_estimated: rows_estimated.max(rows),
            });
        }
        ended(part, reading.await)?;
        for (index, table) in part.tables.iter().enumerate() {
            let expected = by_table.get(&index).copied().unwrap_or_default();
            let found = target.count(table).await?;
            // A key that a push process has recorded stays when the embedded store has none.
            if found != expected && !table.replaces {
                let difference = format!("the table {} has {found} rows instead of {expected}", table.name);
                return Err(differs(part, &difference));
            }
            compared += expected;
        }
    }
    Ok(compared)
}

/// Compares whole timelines entry by entry. Timelines that Valkey has lost since are rebuilt first.
async fn compare_timelines(target: &Target, part: &Part, batch: &Batch) -> Result<()> {
    if batch.timelines.is_empty() {
        return Ok(());
    }
    let timelines = target.cluster().stores().timelines;
    let users: Vec<_> = batch.timelines.iter().map(|(user, _)| *user).collect();
    let mut lost = Vec::new();
    for (found, (user, posts)) in timelines.read(&users).await?.into_iter().zip(&batch.timelines) {
        if found.posts != target.cluster().shown(posts) || !found.complete {
            lost.push((*user, posts));
        }
    }
    if lost.is_empty() {
        return Ok(());
    }
    let users: Vec<_> = lost.iter().map(|(user, _)| *user).collect();
    timelines.rebuild(&users).await?;
    for (found, (user, posts)) in timelines.read(&users).await?.into_iter().zip(lost) {
        // A rebuild adds what is planned and not delivered yet.
        let missing = target.cluster().shown(posts);
        if let Some(post) = missing
            .iter()
            .find(|post| found.posts.binary_search(post).is_err())
        {
            return Err(differs(
                part,
                &format!("post {post} is missing on the timeline of user {user}"),
            ));
        }
    }
    Ok(())
}

/// Compares devices through the store: each encryption of a row differs.
async fn compare_devices(target: &Target, part: &Part, batch: &Batch) -> Result<()> {
    let stored = target.cluster().stores().devices;
    for devices in batch.devices.chunks(DEVICES_PER_READ) {
        let users: Vec<_> = devices.iter().map(|(user, _)| *user).collect();
        for (found, (user, expected)) in stored.of(&users).await?.iter().zip(devices) {
            if found != expected {
                return Err(differs(part, &format!("user {user} has other devices")));
            }
        }
    }
    Ok(())
}

fn differs(part: &Part, difference: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!(
            "the {} in the database differ from those of the embedded store: {difference}; empty the database (`DROP SCHEMA \
             herald CASCADE`), remove the file `moved` of the data directory and run the move again",
            part.name
        ),
    )
}
