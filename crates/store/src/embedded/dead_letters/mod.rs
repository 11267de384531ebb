//! Dead letters and the operations on them.
//!
//! | keyspace | row |
//! |---|---|
//! | `dead_letters` | dead letter → its content and initial progress |
//! | `dead_letter_progress` | dead letter → its progress; no row until the progress first changes |
//! | `dead_letter_origins` | (stream, consumer, sequence) → dead letter: one for each message and consumer |
//! | `dead_letter_states` | (state, dead letter) → nothing |
//! | `dead_letter_groups` | (group, dead letter) → nothing |
//! | `dead_letter_operations` | operation → its request without the selection, and its progress |
//! | `dead_letter_selections` | operation → the requested selection |
//! | `dead_letter_selected` | (operation, index) → part of the selected dead letters; (0, operation) → nothing: it is running |
//!
//! Operation ids start at 1.

pub(crate) mod commit;
pub(crate) mod progress;
pub(crate) mod row;
mod row_cache;
#[cfg(test)]
mod tests;

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use async_trait::async_trait;
use fjall::{Keyspace, Readable, Snapshot};
use herald_model::time::Timestamp;

use self::{
    commit::{CommitBatch, Job, JobResult},
    progress::Progress,
    row::STATES,
};
use super::{
    blocking::read_blocking,
    database::{self, Database, map_err},
    group_commit::GroupCommit,
    leases::EmbeddedLeases,
};
use crate::{
    DeadLetter, DeadLetterFilter, DeadLetterGroups, DeadLetterId, DeadLetterPage, DeadLetterState,
    DeadLetterVersion, Error, ErrorKind, Fence, Inserted, NewOperation, Operation, OperationId,
    OperationState, Order, Reopened, Reopening, Result, Step,
};

/// Approximate number of dead letters in one commit batch. A small limit keeps small writes from waiting for large
/// ones.
const BATCH_DEAD_LETTERS: usize = 128;

/// Maximum number of dead letters that one call of `scan` reads.
const SCAN_DEAD_LETTERS_MAX: usize = 10_000;

/// The embedded engine's [`DeadLetters`](crate::DeadLetters).
pub(crate) struct EmbeddedDeadLetters {
    tables: Arc<Tables>,
    group_commit: GroupCommit<Job, JobResult>,
}

struct Tables {
    database: Arc<Database>,
    leases: Arc<EmbeddedLeases>,
    dead_letters: Keyspace,
    progress: Keyspace,
    origins: Keyspace,
    states: Keyspace,
    groups: Keyspace,
    operations: Keyspace,
    selections: Keyspace,
    selected: Keyspace,
    /// Number of dead letters by state.
    counts: [AtomicI64; STATES.len()],
}

impl EmbeddedDeadLetters {
    /// Opens the dead letters. One of `leases` guards claims.
    pub(crate) fn open(database: &Arc<Database>, leases: &Arc<EmbeddedLeases>) -> Result<Self> {
        let keyspace = |name| database.keyspace(name, database::options);
        let tables = Arc::new(Tables {
            dead_letters: keyspace("dead_letters")?,
            progress: keyspace("dead_letter_progress")?,
            origins: keyspace("dead_letter_origins")?,
            states: keyspace("dead_letter_states")?,
            groups: keyspace("dead_letter_groups")?,
            operations: keyspace("dead_letter_operations")?,
            selections: keyspace("dead_letter_selections")?,
            selected: keyspace("dead_letter_selected")?,
            database: Arc::clone(database),
            leases: Arc::clone(leases),
            counts: std::array::from_fn(|_| AtomicI64::new(0)),
        });
        for state in STATES {
            let rows = tables.states.prefix([row::variant_number(&STATES, &state) as u8]);
            let count = i64::try_from(rows.count()).unwrap_or(i64::MAX);
            tables.counter(state).store(count, Ordering::Relaxed);
        }
        let mut last_operation = match tables.operations.last_key_value() {
            Some(row) => row::key_number(&row.key().map_err(map_err)?)?,
            None => 0,
        };
        let shared = Arc::clone(&tables);
        let group_commit =
            GroupCommit::start("dead_letters", BATCH_DEAD_LETTERS, Job::weight, move |jobs| {
                CommitBatch::run(&shared, &mut last_operation, jobs)
            })?;
        Ok(Self { tables, group_commit })
    }

    /// Deletes dead letters that DLQ stored before one time, and operations begun before another. Returns the number of
    /// deleted rows.
    pub(crate) async fn trim(&self, dead_letters: Timestamp, operations: Timestamp) -> Result<u64> {
        let mut removed = 0;
        loop {
            match self.group_commit.run(Job::Trim(dead_letters, operations)).await? {
                JobResult::Count(0) => return Ok(removed),
                JobResult::Count(some) => removed += some,
                _ => return Err(unexpected_result()),
            }
        }
    }

    /// Runs a long read on the blocking thread pool.
    async fn read_blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Tables) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let tables = Arc::clone(&self.tables);
        read_blocking("the dead letters", move || read(&tables)).await
    }

    async fn run_step_job(&self, job: Job) -> Result<Step> {
        match self.group_commit.run(job).await? {
            JobResult::Step(step) => Ok(*step),
            _ => Err(unexpected_result()),
        }
    }

    async fn run_operation_job(&self, job: Job) -> Result<Operation> {
        match self.group_commit.run(job).await? {
            JobResult::Operation(mut operation) => {
                operation.what.selection = self.tables.selection(operation.id)?;
                Ok(*operation)
            }
            _ => Err(unexpected_result()),
        }
    }
}

impl Tables {
    /// Number of running operations.
    fn running_count(&self) -> u64 {
        self.selected.prefix(0_u64.to_be_bytes()).count() as u64
    }

    fn dead_letter(&self, id: DeadLetterId) -> Result<Option<DeadLetter>> {
        let Some(mut dead_letter) = self.initial_dead_letter(id)? else {
            return Ok(None);
        };
        if let Some(progress) = self.progress(id)? {
            progress.apply_to(&mut dead_letter);
        }
        Ok(Some(dead_letter))
    }

    /// A dead letter as it was inserted, without its progress.
    fn initial_dead_letter(&self, id: DeadLetterId) -> Result<Option<DeadLetter>> {
        let row = self.dead_letters.get(id.0.to_be_bytes()).map_err(map_err)?;
        row.map(|row| row::decode_dead_letter(id, &row)).transpose()
    }

    /// The progress of a dead letter; `None` if it has not changed since the insertion.
    fn progress(&self, id: DeadLetterId) -> Result<Option<Progress>> {
        let row = self.progress.get(id.0.to_be_bytes()).map_err(map_err)?;
        row.map(|row| Progress::decode(&row)).transpose()
    }

    /// An operation without its selection.
    fn operation_row(&self, id: OperationId) -> Result<Option<Operation>> {
        let row = self.operations.get(id.0.to_be_bytes()).map_err(map_err)?;
        row.map(|row| row::decode_operation(id, &row)).transpose()
    }

    fn selection(&self, id: OperationId) -> Result<bytes::Bytes> {
        let row = self.selections.get(id.0.to_be_bytes()).map_err(map_err)?;
        Ok(row.map(|row| row.to_vec().into()).unwrap_or_default())
    }

    fn operation(&self, id: OperationId) -> Result<Option<Operation>> {
        let mut operation = self.operation_row(id)?;
        if let Some(operation) = &mut operation {
            operation.what.selection = self.selection(id)?;
        }
        Ok(operation)
    }

    fn counter(&self, state: DeadLetterState) -> &AtomicI64 {
        &self.counts[row::variant_number(&STATES, &state) as usize]
    }

    fn add_counts(&self, counts: [i64; STATES.len()]) {
        for (counter, count) in self.counts.iter().zip(counts) {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Dead letters that may match the filter, read by group index, else by state index, else from the table. One with a
    /// malformed row is logged and skipped, because it must not hide all others.
    fn candidates<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        filter: &DeadLetterFilter,
        order: Order,
        after: Option<DeadLetterId>,
    ) -> impl Iterator<Item = Result<DeadLetter>> + use<'a> {
        let (keyspace, prefix) = match (filter.group, filter.state) {
            (Some(group), _) => (&self.groups, group.to_be_bytes().to_vec()),
            (None, Some(state)) => (&self.states, vec![row::variant_number(&STATES, &state) as u8]),
            (None, None) => (&self.dead_letters, Vec::new()),
        };
        let indexed = !prefix.is_empty();
        let key = |id: u64| [prefix.as_slice(), &id.to_be_bytes()].concat();
        let after = after.map(|id| id.0);
        let (from, to) = match order {
            Order::OldestFirst => (after.map_or(0, |id| id.saturating_add(1)), u64::MAX),
            Order::NewestFirst => (0, after.map_or(u64::MAX, |id| id.saturating_sub(1))),
        };
        // No id is below 0 or above the maximum.
        let is_empty = match order {
            Order::OldestFirst => after == Some(u64::MAX),
            Order::NewestFirst => after == Some(0),
        };
        let mut rows = snapshot.range(keyspace, key(from)..=key(to));
        std::iter::from_fn(move || {
            if is_empty {
                return None;
            }
            match order {
                Order::OldestFirst => rows.next(),
                Order::NewestFirst => rows.next_back(),
            }
        })
        .filter_map(move |row| {
            let read = || -> Result<Option<DeadLetter>> {
                let (key, value) = row.into_inner().map_err(map_err)?;
                let number = row::key_number(&key)?;
                let get = |keyspace| snapshot.get(keyspace, number.to_be_bytes()).map_err(map_err);
                let Some(value) = (if indexed {
                    get(&self.dead_letters)?
                } else {
                    Some(value)
                }) else {
                    return Ok(None);
                };
                let mut dead_letter = row::decode_dead_letter(DeadLetterId(number), &value)?;
                if let Some(row) = get(&self.progress)? {
                    Progress::decode(&row)?.apply_to(&mut dead_letter);
                }
                Ok(Some(dead_letter))
            };
            match read() {
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    tracing::error!(%error, "a dead letter is left out of a list; an audit reports its message");
                    None
                }
                read => read.transpose(),
            }
        })
    }

    fn scan(
        &self,
        filter: &DeadLetterFilter,
        order: Order,
        after: Option<DeadLetterId>,
        limit: usize,
    ) -> Result<DeadLetterPage> {
        let snapshot = self.database.snapshot();
        let mut page = DeadLetterPage::default();
        let mut examined = 0;
        for dead_letter in self.candidates(&snapshot, filter, order, after) {
            let dead_letter = dead_letter?;
            examined += 1;
            let id = dead_letter.id;
            if filter.passes(&dead_letter) {
                page.dead_letters.push(dead_letter);
            }
            if page.dead_letters.len() >= limit || examined >= SCAN_DEAD_LETTERS_MAX {
                page.next = Some(id);
                break;
            }
        }
        Ok(page)
    }

    fn groups(&self, filter: &DeadLetterFilter) -> Result<DeadLetterGroups> {
        let snapshot = self.database.snapshot();
        let mut groups = DeadLetterGroups::default();
        for dead_letter in self.candidates(&snapshot, filter, Order::OldestFirst, None) {
            let dead_letter = dead_letter?;
            if filter.passes(&dead_letter) {
                groups.add(dead_letter);
            }
        }
        Ok(groups)
    }
}

#[async_trait]
impl crate::DeadLetters for EmbeddedDeadLetters {
    async fn insert(&self, dead_letters: &[DeadLetter]) -> Result<Vec<Inserted>> {
        match self.group_commit.run(Job::Insert(dead_letters.to_vec())).await? {
            JobResult::Inserted(inserted) => Ok(inserted),
            _ => Err(unexpected_result()),
        }
    }

    async fn reopen(&self, reopening: &Reopening) -> Result<Reopened> {
        match self.group_commit.run(Job::Reopen(reopening.clone())).await? {
            JobResult::Reopened(reopened) => Ok(reopened),
            _ => Err(unexpected_result()),
        }
    }

    async fn get(&self, ids: &[DeadLetterId]) -> Result<Vec<Option<DeadLetter>>> {
        ids.iter().map(|id| self.tables.dead_letter(*id)).collect()
    }

    async fn scan(
        &self,
        filter: &DeadLetterFilter,
        order: Order,
        after: Option<DeadLetterId>,
        limit: usize,
    ) -> Result<DeadLetterPage> {
        let filter = filter.clone();
        self.read_blocking(move |tables| tables.scan(&filter, order, after, limit))
            .await
    }

    async fn groups(&self, filter: &DeadLetterFilter) -> Result<DeadLetterGroups> {
        let filter = filter.clone();
        self.read_blocking(move |tables| tables.groups(&filter)).await
    }

    async fn count(&self, state: DeadLetterState) -> Result<u64> {
        Ok(u64::try_from(self.tables.counter(state).load(Ordering::Relaxed)).unwrap_or(0))
    }

    async fn begin(&self, operation: &NewOperation, dead_letters: &[DeadLetterVersion]) -> Result<Operation> {
        self.run_operation_job(Job::Begin(operation.clone(), dead_letters.to_vec(), None))
            .await
    }

    async fn begin_below(
        &self,
        operation: &NewOperation,
        dead_letters: &[DeadLetterVersion],
        running_max: u64,
    ) -> Result<Operation> {
        let job = Job::Begin(operation.clone(), dead_letters.to_vec(), Some(running_max));
        self.run_operation_job(job).await
    }

    async fn claim(
        &self,
        operation: OperationId,
        limit: usize,
        redrive_after: u64,
        at: Timestamp,
        fence: &Fence,
    ) -> Result<Step> {
        self.run_step_job(Job::Claim {
            operation,
            limit,
            redrive_after,
            at,
            fence: fence.clone(),
        })
        .await
    }

    async fn sent(&self, operation: OperationId, dead_letters: &[(DeadLetterVersion, u64)]) -> Result<()> {
        self.group_commit
            .run(Job::Sent(operation, dead_letters.to_vec()))
            .await
            .map(drop)
    }

    async fn resolve(&self, dead_letters: &[DeadLetterVersion], at: Timestamp) -> Result<u64> {
        match self
            .group_commit
            .run(Job::Resolve(dead_letters.to_vec(), at))
            .await?
        {
            JobResult::Count(count) => Ok(count),
            _ => Err(unexpected_result()),
        }
    }

    async fn discard(&self, operation: OperationId, limit: usize, at: Timestamp) -> Result<Step> {
        self.run_step_job(Job::Discard { operation, limit, at }).await
    }

    async fn finish(
        &self,
        operation: OperationId,
        state: OperationState,
        reason: &str,
        at: Timestamp,
    ) -> Result<Operation> {
        self.run_operation_job(Job::Finish {
            operation,
            state,
            reason: reason.into(),
            at,
        })
        .await
    }

    async fn operation(&self, id: OperationId) -> Result<Option<Operation>> {
        self.tables.operation(id)
    }

    async fn operations(&self, before: Option<OperationId>, limit: usize) -> Result<Vec<Operation>> {
        let end = before.map_or(u64::MAX, |operation| operation.0);
        self.tables
            .operations
            .range(..end.to_be_bytes())
            .rev()
            .take(limit)
            .map(|row| {
                let (key, value) = row.into_inner().map_err(map_err)?;
                let id = OperationId(row::key_number(&key)?);
                let mut operation = row::decode_operation(id, &value)?;
                operation.what.selection = self.tables.selection(id)?;
                Ok(operation)
            })
            .collect()
    }

    async fn running(&self) -> Result<Vec<Operation>> {
        let mut operations = Vec::new();
        for row in self.tables.selected.prefix(0_u64.to_be_bytes()) {
            let id = OperationId(row::key_number(&row.key().map_err(map_err)?)?);
            operations.extend(self.tables.operation(id)?);
        }
        Ok(operations)
    }
}

fn unexpected_result() -> Error {
    Error::new(
        ErrorKind::Corrupt,
        "a write of the dead letters returned the result of another job",
    )
}
