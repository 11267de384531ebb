//! Writes of dead letters. One thread runs the jobs in batches: each job reads the rows it changes, and all jobs of a
//! batch share one commit.

mod operations;

use std::collections::HashMap;

use futures::executor::block_on;
use herald_model::time::Timestamp;

pub(crate) use self::operations::SELECTED_PER_ROW;
use super::{Tables, progress::Progress, row, row_cache::RowCache};
use crate::{
    DeadLetter, DeadLetterId, DeadLetterState, DeadLetterVersion, Error, ErrorKind, Fence, Inserted,
    NewOperation, Operation, OperationId, OperationState, Reopened, Reopening, Result, Step,
    embedded::database::map_err,
};

/// Maximum number of dead letters, and of operations, that one trim job reads.
const TRIM_ROWS_MAX: usize = 1_000;

/// A write of one caller.
pub(super) enum Job {
    Insert(Vec<DeadLetter>),
    Reopen(Reopening),
    /// With a maximum number of running operations.
    Begin(NewOperation, Vec<DeadLetterVersion>, Option<u64>),
    Claim {
        operation: OperationId,
        limit: usize,
        redrive_after: u64,
        at: Timestamp,
        fence: Fence,
    },
    Sent(OperationId, Vec<(DeadLetterVersion, u64)>),
    Resolve(Vec<DeadLetterVersion>, Timestamp),
    Discard {
        operation: OperationId,
        limit: usize,
        at: Timestamp,
    },
    Finish {
        operation: OperationId,
        state: OperationState,
        reason: String,
        at: Timestamp,
    },
    /// Deletes dead letters stored before the first time and operations begun before the second.
    Trim(Timestamp, Timestamp),
}

/// The result of a [`Job`].
pub(super) enum JobResult {
    Inserted(Vec<Inserted>),
    Reopened(Reopened),
    Operation(Box<Operation>),
    Step(Box<Step>),
    Count(u64),
}

impl Job {
    /// Approximate number of dead letters that the job writes.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Insert(dead_letters) => dead_letters.len(),
            Self::Begin(_, dead_letters, _) => 1 + dead_letters.len() / 64,
            Self::Claim { limit, .. } | Self::Discard { limit, .. } => *limit,
            Self::Sent(_, dead_letters) => dead_letters.len(),
            Self::Resolve(dead_letters, _) => dead_letters.len(),
            Self::Trim(..) => TRIM_ROWS_MAX,
            Self::Reopen(_) | Self::Finish { .. } => 1,
        }
    }
}

/// The current batch: its uncommitted changes.
pub(super) struct CommitBatch<'a> {
    tables: &'a Tables,
    batch: fjall::OwnedWriteBatch,
    rows: RowCache<'a>,
    origins: HashMap<Vec<u8>, u64>,
    next_operation: u64,
    /// Operations that began in this batch and run.
    begun: u64,
}

impl<'a> CommitBatch<'a> {
    /// Runs jobs in order and commits their changes durably.
    pub(super) fn run(
        tables: &'a Tables,
        last_operation: &mut u64,
        jobs: Vec<Job>,
    ) -> Result<Vec<Result<JobResult>>> {
        let mut commit = CommitBatch {
            tables,
            batch: tables.database.batch(),
            rows: RowCache::new(tables),
            origins: HashMap::new(),
            next_operation: *last_operation + 1,
            begun: 0,
        };
        let mut answers = Vec::with_capacity(jobs.len());
        for job in jobs {
            let inserts = matches!(job, Job::Insert(_));
            answers.push(match commit.run_job(job) {
                // Refused before it changed anything.
                Err(error) if error.kind() == ErrorKind::LimitExceeded => Err(error),
                // An id that is taken: what was inserted before it in the same call stays.
                Err(error) if inserts && error.kind() == ErrorKind::Corrupt => Err(error),
                done => Ok(done?),
            });
        }
        // Raised even if the commit fails: its rows may be durable, so the ids must not be reused.
        *last_operation = commit.next_operation - 1;
        commit.commit()?;
        Ok(answers)
    }

    fn run_job(&mut self, job: Job) -> Result<JobResult> {
        Ok(match job {
            Job::Insert(dead_letters) => JobResult::Inserted(
                dead_letters
                    .into_iter()
                    .map(|dead_letter| self.insert(dead_letter))
                    .collect::<Result<_>>()?,
            ),
            Job::Reopen(reopening) => JobResult::Reopened(self.reopen(reopening)?),
            Job::Begin(operation, dead_letters, running_max) => {
                if let Some(running_max) = running_max {
                    self.check_running(running_max)?;
                }
                JobResult::Operation(Box::new(self.begin(operation, &dead_letters)))
            }
            Job::Claim {
                operation,
                limit,
                redrive_after,
                at,
                fence,
            } => {
                self.tables.leases.check(&fence)?;
                JobResult::Step(Box::new(self.claim(operation, limit, redrive_after, at)?))
            }
            Job::Discard { operation, limit, at } => {
                JobResult::Step(Box::new(self.discard(operation, limit, at)?))
            }
            Job::Sent(operation, dead_letters) => {
                let mut count = 0;
                for (version, sequence) in dead_letters {
                    count += u64::from(self.change(version, |progress| {
                        progress.redrive == Some(operation) && {
                            progress.redrive_sequence = sequence;
                            true
                        }
                    })?);
                }
                JobResult::Count(count)
            }
            Job::Resolve(dead_letters, at) => {
                let mut resolved = 0;
                for version in dead_letters {
                    resolved += u64::from(self.resolve(version, at)?);
                }
                JobResult::Count(resolved)
            }
            Job::Finish {
                operation,
                state,
                reason,
                at,
            } => JobResult::Operation(Box::new(self.finish(operation, state, reason, at)?)),
            Job::Trim(dead_letters, operations) => JobResult::Count(self.trim(dead_letters, operations)?),
        })
    }

    fn insert(&mut self, mut dead_letter: DeadLetter) -> Result<Inserted> {
        let key = row::origin_key(&dead_letter.origin);
        let existing = match self.origins.get(&key) {
            Some(id) => Some(*id),
            None => self
                .tables
                .origins
                .get(&key)
                .map_err(map_err)?
                .map(|id| row::key_number(&id))
                .transpose()?,
        };
        if let Some(id) = existing {
            return Ok(Inserted {
                id: DeadLetterId(id),
                new: false,
            });
        }
        let id = dead_letter.id;
        if self.rows.dead_letter(id)?.value.is_some() {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("the id {} belongs to another dead letter", id.0),
            ));
        }
        dead_letter.state = DeadLetterState::Open;
        dead_letter.round = 0;
        dead_letter.redrive = None;
        dead_letter.operations.clear();
        dead_letter.redrive_sequence = 0;
        self.batch
            .insert(&self.tables.origins, key.clone(), id.0.to_be_bytes());
        self.origins.insert(key, id.0);
        self.rows.progress(id)?.value = Some(Progress::of(&dead_letter));
        let cached = self.rows.dead_letter(id)?;
        cached.value = Some(dead_letter);
        cached.dirty = true;
        Ok(Inserted { id, new: true })
    }

    fn reopen(&mut self, reopening: Reopening) -> Result<Reopened> {
        let cached = self.rows.progress(reopening.dead_letter)?;
        let Some(progress) = &mut cached.value else {
            return Ok(Reopened::NotFound);
        };
        let previous_state = progress.state;
        let is_new_failure = progress.round == reopening.round
            && matches!(
                previous_state,
                DeadLetterState::Redriving | DeadLetterState::Resolved
            );
        if !is_new_failure {
            return Ok(Reopened::AlreadyRecorded);
        }
        progress.state = DeadLetterState::Open;
        progress.updated_at = reopening.failed_at;
        let redrive = progress.redrive;
        cached.dirty = true;
        let cached = self.rows.dead_letter(reopening.dead_letter)?;
        let dead_letter = cached.value.as_mut().ok_or_else(row::malformed)?;
        dead_letter.cause = reopening.cause;
        dead_letter.reason = reopening.reason;
        dead_letter.group = reopening.group;
        dead_letter.group_reason = reopening.group_reason;
        dead_letter.last_failed_at = dead_letter.last_failed_at.max(reopening.failed_at);
        cached.dirty = true;
        if let Some(operation) = redrive {
            let operation = self.rows.operation(operation)?;
            operation.failed += 1;
            if previous_state == DeadLetterState::Resolved {
                operation.resolved = operation.resolved.saturating_sub(1);
            }
            extend_end(operation, reopening.failed_at);
        }
        Ok(Reopened::Open)
    }

    fn resolve(&mut self, version: DeadLetterVersion, at: Timestamp) -> Result<bool> {
        let mut redrive = None;
        let resolved = self.change(version, |progress| {
            progress.state == DeadLetterState::Redriving && {
                progress.state = DeadLetterState::Resolved;
                progress.updated_at = at;
                redrive = progress.redrive;
                true
            }
        })?;
        if let Some(operation) = redrive {
            let operation = self.rows.operation(operation)?;
            operation.resolved += 1;
            extend_end(operation, at);
        }
        Ok(resolved)
    }

    fn trim(&mut self, dead_letters: Timestamp, operations: Timestamp) -> Result<u64> {
        let mut removed = 0;
        for entry in self.tables.dead_letters.iter().take(TRIM_ROWS_MAX) {
            let (key, value) = entry.into_inner().map_err(map_err)?;
            let id = DeadLetterId(row::key_number(&key)?);
            let dead_letter = row::decode_dead_letter(id, &value)?;
            if dead_letter.stored_at >= dead_letters {
                break;
            }
            // A running redrive still needs the dead letter to record its outcome.
            let progress = self.rows.progress(id)?.value.as_ref();
            if progress.is_some_and(|progress| progress.state == DeadLetterState::Redriving) {
                continue;
            }
            self.batch
                .remove(&self.tables.origins, row::origin_key(&dead_letter.origin));
            let cached = self.rows.progress(id)?;
            cached.value = None;
            cached.dirty = true;
            let cached = self.rows.dead_letter(id)?;
            cached.value = None;
            cached.dirty = true;
            removed += 1;
        }
        for entry in self.tables.operations.iter().take(TRIM_ROWS_MAX) {
            let (key, value) = entry.into_inner().map_err(map_err)?;
            let operation = row::decode_operation(OperationId(row::key_number(&key)?), &value)?;
            if operation.what.at >= operations || operation.state == OperationState::Running {
                break;
            }
            self.batch.remove(&self.tables.operations, key.clone());
            self.batch.remove(&self.tables.selections, key);
            removed += 1;
        }
        Ok(removed)
    }

    /// Applies `change` to the progress of a dead letter that is still in this round. Returns whether `change`
    /// made a change, which is its return value.
    fn change(
        &mut self,
        version: DeadLetterVersion,
        change: impl FnOnce(&mut Progress) -> bool,
    ) -> Result<bool> {
        let cached = self.rows.progress(version.id)?;
        let changed = match &mut cached.value {
            Some(progress) if progress.round == version.round => change(progress),
            _ => false,
        };
        cached.dirty |= changed;
        Ok(changed)
    }

    fn commit(mut self) -> Result<()> {
        let counts = self.rows.write(&mut self.batch);
        if !self.batch.is_empty() {
            block_on(self.tables.database.commit(self.batch))?;
        }
        self.tables.add_counts(counts);
        Ok(())
    }
}

/// Moves the end of a redrive that has sent all of its dead letters to the time of an outcome.
fn extend_end(operation: &mut Operation, outcome_at: Timestamp) {
    operation.ended_at = operation.ended_at.map(|ended_at| ended_at.max(outcome_at));
}
