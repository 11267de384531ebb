//! Operations on dead letters: their begin, the steps on their selection, and their end.

use herald_model::time::Timestamp;

use super::{
    super::{progress::Progress, row},
    CommitBatch,
};
use crate::{
    DeadLetter, DeadLetterId, DeadLetterState, DeadLetterVersion, ErrorKind, NewOperation,
    OPERATIONS_PER_DEAD_LETTER, Operation, OperationId, OperationState, Result, Step,
    dead_letters::too_many_running, embedded::database::map_err,
};

/// Dead letters in one row of an operation's selection.
pub(crate) const SELECTED_PER_ROW: u64 = 1_024;

impl CommitBatch<'_> {
    /// Refuses an operation while as many are running. Those that end in this batch still count.
    pub(super) fn check_running(&self, running_max: u64) -> Result<()> {
        let running = self.tables.running_count() + self.begun;
        if running >= running_max {
            return Err(too_many_running(running, running_max));
        }
        Ok(())
    }

    /// Stores a new operation and its selection. One that selects nothing is done at once.
    pub(super) fn begin(&mut self, request: NewOperation, dead_letters: &[DeadLetterVersion]) -> Operation {
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

    /// Marks the operation's next `limit` dead letters as redriving, each in a new round.
    pub(super) fn claim(
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

    /// Discards the operation's next `limit` dead letters, and ends the operation after the last one.
    pub(super) fn discard(&mut self, operation: OperationId, limit: usize, at: Timestamp) -> Result<Step> {
        let mut step = self.step(operation, limit, |progress, _| {
            progress.state = DeadLetterState::Discarded;
            progress.updated_at = at;
        })?;
        if step.operation.reached >= step.operation.selected {
            step.operation = self.finish(operation, OperationState::Done, String::new(), at)?;
        }
        Ok(step)
    }

    /// Applies `change` to an operation's next dead letters. Dead letters that changed since they were selected, and
    /// those whose row can't be decoded, are skipped.
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

    /// Ends a running operation and deletes its selection. An operation that has ended stays as it is.
    pub(super) fn finish(
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
}
