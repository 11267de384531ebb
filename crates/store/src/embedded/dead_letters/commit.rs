//! The writes, done in rounds by one thread: each reads what it changes, and a round is committed at once.

use std::collections::HashMap;

use futures::executor::block_on;
use herald_model::time::Timestamp;

use super::{Tables, progress::Progress, row, rows::Rows};
use crate::{
    Chosen, DeadLetter, DeadLetterId, DeadLetterState, Inserted, NewOperation, OPERATIONS_PER_DEAD_LETTER,
    Operation, OperationId, OperationState, Reopened, Reopening, Result, Step, embedded::database::map_err,
};

/// Dead letters in one row of what an operation is about.
pub(super) const FROZEN_PART: u64 = 1_024;

/// Dead letters that one commit forgets.
const TRIM_LETTERS: usize = 1_000;

/// One write.
pub(super) enum Job {
    Insert(Vec<DeadLetter>),
    Reopen(Reopening),
    Begin(NewOperation, Vec<Chosen>),
    Claim {
        operation: OperationId,
        limit: usize,
        redrive_after: u64,
        at: Timestamp,
    },
    Sent(OperationId, Vec<(Chosen, u64)>),
    Resolve(Vec<Chosen>, Timestamp),
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
    /// Dead letters and operations older than these.
    Trim(Timestamp, Timestamp),
}

/// The answer to a [`Job`].
pub(super) enum Done {
    Inserted(Vec<Inserted>),
    Reopened(Reopened),
    Operation(Box<Operation>),
    Step(Box<Step>),
    Count(u64),
}

impl Job {
    /// How many dead letters it writes.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Insert(dead_letters) => dead_letters.len(),
            Self::Begin(_, dead_letters) => 1 + dead_letters.len() / 64,
            Self::Claim { limit, .. } | Self::Discard { limit, .. } => *limit,
            Self::Sent(_, dead_letters) => dead_letters.len(),
            Self::Resolve(dead_letters, _) => dead_letters.len(),
            Self::Trim(..) => TRIM_LETTERS,
            Self::Reopen(_) | Self::Finish { .. } => 1,
        }
    }
}

/// The round in hand: what is in it and can't be read yet.
pub(super) struct CommitBatch<'a> {
    tables: &'a Tables,
    batch: fjall::OwnedWriteBatch,
    rows: Rows<'a>,
    origins: HashMap<Vec<u8>, u64>,
    next_operation: u64,
}

impl<'a> CommitBatch<'a> {
    /// Does jobs, and makes what they did durable.
    pub(super) fn run(
        tables: &'a Tables,
        last_operation: &mut u64,
        jobs: Vec<Job>,
    ) -> Result<Vec<Result<Done>>> {
        let mut round = CommitBatch {
            tables,
            batch: tables.database.batch(),
            rows: Rows::new(tables),
            origins: HashMap::new(),
            next_operation: *last_operation + 1,
        };
        let mut answers = Vec::with_capacity(jobs.len());
        for job in jobs {
            answers.push(Ok(round.job(job)?));
        }
        // Raised even when the commit fails: an id that may have been told is not given again.
        *last_operation = round.next_operation - 1;
        round.commit()?;
        Ok(answers)
    }

    fn job(&mut self, job: Job) -> Result<Done> {
        Ok(match job {
            Job::Insert(dead_letters) => Done::Inserted(
                dead_letters
                    .into_iter()
                    .map(|dead_letter| self.insert(dead_letter))
                    .collect::<Result<_>>()?,
            ),
            Job::Reopen(reopening) => Done::Reopened(self.reopen(reopening)?),
            Job::Begin(operation, dead_letters) => {
                Done::Operation(Box::new(self.begin(operation, &dead_letters)))
            }
            Job::Claim {
                operation,
                limit,
                redrive_after,
                at,
            } => Done::Step(Box::new(self.step(operation, limit, |progress, operation| {
                progress.state = DeadLetterState::Redriving;
                progress.round += 1;
                progress.redrive = Some(operation.id);
                progress.redrive_sequence = 0;
                progress.updated_at = at;
                operation.redrive_after = redrive_after;
            })?)),
            Job::Discard { operation, limit, at } => {
                let mut step = self.step(operation, limit, |progress, _| {
                    progress.state = DeadLetterState::Discarded;
                    progress.updated_at = at;
                })?;
                if step.operation.reached >= step.operation.frozen {
                    step.operation = self.finish(operation, OperationState::Done, String::new(), at)?;
                }
                Done::Step(Box::new(step))
            }
            Job::Sent(operation, dead_letters) => {
                let mut count = 0;
                for (chosen, sequence) in dead_letters {
                    count += u64::from(self.change(chosen, |progress| {
                        progress.redrive == Some(operation) && {
                            progress.redrive_sequence = sequence;
                            true
                        }
                    })?);
                }
                Done::Count(count)
            }
            Job::Resolve(dead_letters, at) => {
                let mut resolved = 0;
                for chosen in dead_letters {
                    resolved += u64::from(self.resolve(chosen, at)?);
                }
                Done::Count(resolved)
            }
            Job::Finish {
                operation,
                state,
                reason,
                at,
            } => Done::Operation(Box::new(self.finish(operation, state, reason, at)?)),
            Job::Trim(dead_letters, operations) => Done::Count(self.trim(dead_letters, operations)?),
        })
    }

    fn insert(&mut self, mut dead_letter: DeadLetter) -> Result<Inserted> {
        let key = row::origin_key(&dead_letter.origin);
        let known = match self.origins.get(&key) {
            Some(id) => Some(*id),
            None => self
                .tables
                .origins
                .get(&key)
                .map_err(map_err)?
                .map(|id| row::last_number(&id))
                .transpose()?,
        };
        if let Some(id) = known {
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
        self.rows.progress(id)?.now = Some(Progress::of(&dead_letter));
        let changed = self.rows.dead_letter(id)?;
        changed.now = Some(dead_letter);
        changed.dirty = true;
        Ok(Inserted { id, new: true })
    }

    fn reopen(&mut self, reopening: Reopening) -> Result<Reopened> {
        let changed = self.rows.progress(reopening.dead_letter)?;
        let Some(progress) = &mut changed.now else {
            return Ok(Reopened::Unknown);
        };
        let was = progress.state;
        let is_news = progress.round == reopening.round
            && matches!(was, DeadLetterState::Redriving | DeadLetterState::Resolved);
        if !is_news {
            return Ok(Reopened::Known);
        }
        progress.state = DeadLetterState::Open;
        progress.updated_at = reopening.failed_at;
        let redrive = progress.redrive;
        changed.dirty = true;
        let changed = self.rows.dead_letter(reopening.dead_letter)?;
        let dead_letter = changed.now.as_mut().ok_or_else(row::malformed)?;
        dead_letter.cause = reopening.cause;
        dead_letter.reason = reopening.reason;
        dead_letter.group = reopening.group;
        dead_letter.group_reason = reopening.group_reason;
        dead_letter.last_failed_at = dead_letter.last_failed_at.max(reopening.failed_at);
        changed.dirty = true;
        if let Some(operation) = redrive {
            let operation = self.rows.operation(operation)?;
            operation.failed += 1;
            if was == DeadLetterState::Resolved {
                operation.resolved = operation.resolved.saturating_sub(1);
            }
        }
        Ok(Reopened::Open)
    }

    fn begin(&mut self, what: NewOperation, dead_letters: &[Chosen]) -> Operation {
        let id = OperationId(self.next_operation);
        self.next_operation += 1;
        let parts = dead_letters.chunks(FROZEN_PART as usize);
        for (part, dead_letters) in (0_u64..).zip(parts) {
            let key = row::frozen_key(id, part);
            self.batch
                .insert(&self.tables.frozen, key, row::encode_frozen(dead_letters));
        }
        self.batch.insert(
            &self.tables.selections,
            id.0.to_be_bytes(),
            what.selection.as_ref(),
        );
        let nothing = dead_letters.is_empty();
        let operation = Operation {
            id,
            state: if nothing {
                OperationState::Done
            } else {
                OperationState::Running
            },
            reason: String::new(),
            ended_at: nothing.then_some(what.at),
            frozen: dead_letters.len() as u64,
            reached: 0,
            skipped: 0,
            resolved: 0,
            failed: 0,
            redrive_after: 0,
            what,
        };
        self.rows.set_operation(operation.clone());
        operation
    }

    /// Takes an operation's next dead letters and changes those that are as they were chosen.
    fn step(
        &mut self,
        operation: OperationId,
        limit: usize,
        mut change: impl FnMut(&mut Progress, &mut Operation),
    ) -> Result<Step> {
        let mut now = self.rows.operation(operation)?.clone();
        let mut dead_letters = Vec::new();
        let mut left = match now.state {
            OperationState::Running => limit as u64,
            _ => 0,
        }
        .min(now.frozen - now.reached);
        while left > 0 {
            let (part, from) = (now.reached / FROZEN_PART, now.reached % FROZEN_PART);
            let row = self
                .tables
                .frozen
                .get(row::frozen_key(operation, part))
                .map_err(map_err)?
                .ok_or_else(row::malformed)?;
            let chosen = row::decode_frozen(&row)?;
            let taken = chosen.iter().skip(from as usize).take(left as usize);
            let before = now.reached;
            for chosen in taken {
                now.reached += 1;
                let changed = self.rows.progress(chosen.id)?;
                let progress = changed.now.as_mut().filter(|progress| {
                    progress.state == DeadLetterState::Open && progress.round == chosen.round
                });
                let Some(progress) = progress else {
                    now.skipped += 1;
                    continue;
                };
                change(progress, &mut now);
                progress.operations.push(operation);
                let surplus = progress
                    .operations
                    .len()
                    .saturating_sub(OPERATIONS_PER_DEAD_LETTER);
                progress.operations.drain(..surplus);
                let progress = progress.clone();
                changed.dirty = true;
                let dead_letter = &self.rows.dead_letter(chosen.id)?.now;
                let mut dead_letter = dead_letter.clone().ok_or_else(row::malformed)?;
                progress.put_into(&mut dead_letter);
                dead_letters.push(dead_letter);
            }
            if now.reached == before {
                return Err(row::malformed());
            }
            left -= now.reached - before;
        }
        self.rows.set_operation(now.clone());
        Ok(Step {
            dead_letters,
            operation: now,
        })
    }

    fn resolve(&mut self, chosen: Chosen, at: Timestamp) -> Result<bool> {
        let mut redrive = None;
        let resolved = self.change(chosen, |progress| {
            progress.state == DeadLetterState::Redriving && {
                progress.state = DeadLetterState::Resolved;
                progress.updated_at = at;
                redrive = progress.redrive;
                true
            }
        })?;
        if let Some(operation) = redrive {
            self.rows.operation(operation)?.resolved += 1;
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
        let now = self.rows.operation(operation)?;
        if now.state == OperationState::Running {
            now.state = state;
            now.reason = reason;
            now.ended_at = Some(at);
            let now = now.clone();
            for part in 0..now.frozen.div_ceil(FROZEN_PART) {
                self.batch
                    .remove(&self.tables.frozen, row::frozen_key(operation, part));
            }
            return Ok(now);
        }
        Ok(now.clone())
    }

    fn trim(&mut self, dead_letters: Timestamp, operations: Timestamp) -> Result<u64> {
        let mut removed = 0;
        for entry in self.tables.dead_letters.iter().take(TRIM_LETTERS) {
            let (key, value) = entry.into_inner().map_err(map_err)?;
            let id = DeadLetterId(row::last_number(&key)?);
            let dead_letter = row::decode_dead_letter(id, &value)?;
            if dead_letter.stored_at >= dead_letters {
                break;
            }
            // Its redrive still has to learn what became of it.
            let progress = self.rows.progress(id)?.now.as_ref();
            if progress.is_some_and(|progress| progress.state == DeadLetterState::Redriving) {
                continue;
            }
            self.batch
                .remove(&self.tables.origins, row::origin_key(&dead_letter.origin));
            let changed = self.rows.progress(id)?;
            changed.now = None;
            changed.dirty = true;
            let changed = self.rows.dead_letter(id)?;
            changed.now = None;
            changed.dirty = true;
            removed += 1;
        }
        for entry in self.tables.operations.iter().take(TRIM_LETTERS) {
            let (key, value) = entry.into_inner().map_err(map_err)?;
            let operation = row::decode_operation(OperationId(row::last_number(&key)?), &value)?;
            if operation.what.at >= operations || operation.state == OperationState::Running {
                break;
            }
            self.batch.remove(&self.tables.operations, key.clone());
            self.batch.remove(&self.tables.selections, key);
            removed += 1;
        }
        Ok(removed)
    }

    /// Changes what became of a dead letter that is still in this round, if `change` says so.
    fn change(&mut self, chosen: Chosen, change: impl FnOnce(&mut Progress) -> bool) -> Result<bool> {
        let changed = self.rows.progress(chosen.id)?;
        let did = match &mut changed.now {
            Some(progress) if progress.round == chosen.round => change(progress),
            _ => false,
        };
        changed.dirty |= did;
        Ok(did)
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
