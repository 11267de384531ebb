//! Writes of dead letters. One thread runs the jobs in batches: each job reads the rows it changes, and all jobs of a
//! batch share one commit.

use std::collections::HashMap;

use futures::executor::block_on;
use herald_model::time::Timestamp;

use super::{Tables, progress::Progress, row, row_cache::RowCache};
use crate::{
    DeadLetter, DeadLetterId, DeadLetterState, DeadLetterVersion, ErrorKind, Fence, Inserted, NewOperation,
    OPERATIONS_PER_DEAD_LETTER, Operation, OperationId, OperationState, Reopened, Reopening, Result, Step,
    dead_letters::too_many_running, embedded::database::map_err,
};

/// Dead letters in one row of an operation's selection.
pub(crate) const SELECTED_PER_ROW: u64 = 1_024;

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
            answers.push(match commit.run_job(job) {
                // Refused before it changed anything.
                Err(error) if error.kind() == ErrorKind::LimitExceeded => Err(error),
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
                let mut step = self.step(operation, limit, |progress, _| {
                    progress.state = DeadLetterState::Discarded;
                    progress.updated_at = at;
                })?;
                if step.operation.reached >= step.operation.selected {
                    step.operation = self.finish(operation, OperationState::Done, String::new(), at)?;
                }
                JobResult::Step(Box::new(step))
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

    /// Refuses an operation while as many are running. Those that end in this batch still count.
    fn check_running(&self, running_max: u64) -> Result<()> {
        let running = self.tables.running_count() + self.begun;
        if running >= running_max {
            return Err(too_many_running(running, running_max));
        }
        Ok(())
    }

    fn begin(&mut self, request: NewOperation, dead_letters: &[DeadLetterVersion]) -> Operation {
        let id = OperationId(self.next_operation);
        self.next_operation += 1;
        let chunks = dead_letters.chunks(SELECTED_PER_ROW as usize);
        for (index, dead_letters) in (0_u64..).zip(chunks) {
            let key = row::selected_key(id, index);
            self.batch
                .insert(&self.tables.selected, key, row::encode_selected(dead_letters));
        }
        self.batch.insert(
            &self.tables.selections,
            id.0.to_be_bytes(),
            request.selection.as_ref(),
        );
        let is_empty = dead_letters.is_empty();
        self.begun += u64::from(!is_empty);
        let operation = Operation {
            id,
            state: if is_empty {
                OperationState::Done
            } else {
                OperationState::Running
            },
            reason: String::new(),
            ended_at: is_empty.then_some(request.at),
            selected: dead_letters.len() as u64,
            reached: 0,
            skipped: 0,
            resolved: 0,
            failed: 0,
            expired: 0,
            redrive_after: 0,
            what: request,
        };
        self.rows.set_operation(operation.clone());
        operation
    }

    fn claim(
        &mut self,
        operation: OperationId,
        limit: usize,
        redrive_after: u64,
        at: Timestamp,
    ) -> Result<Step> {
        let mut step = self.step(operation, limit, |progress, operation| {
            progress.state = DeadLetterState::Redriving;
            progress.round += 1;
            progress.redrive = Some(operation.id);
            progress.redrive_sequence = 0;
            progress.updated_at = at;
            if let Some(ttl) = operation.what.push_ttl {
                progress.pushes_expire_at = Some(at.plus(ttl));
            }
            operation.redrive_after = redrive_after;
        })?;
        let claimed = step.dead_letters.iter();
        let expired = claimed.filter(|dead_letter| step.operation.what.finds_expired(dead_letter, at));
        step.operation.expired += expired.count() as u64;
        self.rows.set_operation(step.operation.clone());
        Ok(step)
    }

    /// Applies `change` to an operation's next dead letters. Dead letters that changed since they were selected, and those
    /// whose row can't be decoded, are skipped.
    fn step(
        &mut self,
        operation: OperationId,
        limit: usize,
        mut change: impl FnMut(&mut Progress, &mut Operation),
    ) -> Result<Step> {
        let mut current = self.rows.operation(operation)?.clone();
        let mut dead_letters = Vec::new();
        let mut left = match current.state {
            OperationState::Running => limit as u64,
            _ => 0,
        }
        .min(current.selected - current.reached);
        while left > 0 {
            let (index, from) = (
                current.reached / SELECTED_PER_ROW,
                current.reached % SELECTED_PER_ROW,
            );
            let row = self
                .tables
                .selected
                .get(row::selected_key(operation, index))
                .map_err(map_err)?
                .ok_or_else(row::malformed)?;
            let selected = row::decode_selected(&row)?;
            let next = selected.iter().skip(from as usize).take(left as usize);
            let before = current.reached;
            for version in next {
                current.reached += 1;
                let Some(mut dead_letter) = self.readable(version.id)? else {
                    current.skipped += 1;
                    continue;
                };
                let cached = self.rows.progress(version.id)?;
                let progress = cached.value.as_mut().filter(|progress| {
                    progress.state == DeadLetterState::Open && progress.round == version.round
                });
                let Some(progress) = progress else {
                    current.skipped += 1;
                    continue;
                };
                change(progress, &mut current);
                progress.operations.push(operation);
                let surplus = progress
                    .operations
                    .len()
                    .saturating_sub(OPERATIONS_PER_DEAD_LETTER);
                progress.operations.drain(..surplus);
                let progress = progress.clone();
                cached.dirty = true;
                progress.apply_to(&mut dead_letter);
                dead_letters.push(dead_letter);
            }
            if current.reached == before {
                return Err(row::malformed());
            }
            left -= current.reached - before;
        }
        self.rows.set_operation(current.clone());
        Ok(Step {
            dead_letters,
            operation: current,
        })
    }

    /// A dead letter as it was inserted. `None` if there is none and, after a line in the log, if its row or that of its
    /// progress can't be decoded.
    fn readable(&mut self, id: DeadLetterId) -> Result<Option<DeadLetter>> {
        let dead_letter = self.rows.dead_letter(id).map(|row| row.value.clone());
        match dead_letter.and_then(|dead_letter| self.rows.progress(id).map(|_| dead_letter)) {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                tracing::error!(
                    dead_letter = id.0,
                    %error,
                    "an operation skipped a dead letter whose row can't be decoded"
                );
                Ok(None)
            }
            read => read,
        }
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

    fn finish(
        &mut self,
        operation: OperationId,
        state: OperationState,
        reason: String,
        at: Timestamp,
    ) -> Result<Operation> {
        let current = self.rows.operation(operation)?;
        if current.state == OperationState::Running {
            current.state = state;
            current.reason = reason;
            current.ended_at = Some(at);
            let current = current.clone();
            for index in 0..current.selected.div_ceil(SELECTED_PER_ROW) {
                self.batch
                    .remove(&self.tables.selected, row::selected_key(operation, index));
            }
            return Ok(current);
        }
        Ok(current.clone())
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
