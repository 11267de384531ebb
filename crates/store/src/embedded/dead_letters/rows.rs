//! The rows that a round is about: read when they are needed, changed here, and written together at its end.

use std::collections::{HashMap, hash_map::Entry};

use super::{
    Tables,
    progress::Progress,
    row::{self, STATES},
};
use crate::{
    DeadLetter, DeadLetterId, DeadLetterState, Operation, OperationId, OperationKind, OperationState, Result,
};

/// As they are in the round.
pub(super) struct Rows<'a> {
    tables: &'a Tables,
    dead_letters: HashMap<u64, Changed<DeadLetter, u64>>,
    progress: HashMap<u64, Changed<Progress, DeadLetterState>>,
    operations: HashMap<u64, Operation>,
}

/// A row.
pub(super) struct Changed<T, I> {
    /// Where its index has it.
    before: Option<I>,
    /// As it will be; `None`: it is not there.
    pub(super) now: Option<T>,
    pub(super) dirty: bool,
}

impl<'a> Rows<'a> {
    /// None was needed yet.
    pub(super) fn new(tables: &'a Tables) -> Self {
        Self {
            tables,
            dead_letters: HashMap::new(),
            progress: HashMap::new(),
            operations: HashMap::new(),
        }
    }

    /// What became of a dead letter.
    pub(super) fn progress(&mut self, id: DeadLetterId) -> Result<&mut Changed<Progress, DeadLetterState>> {
        match self.progress.entry(id.0) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let now = match self.tables.progress(id)? {
                    Some(progress) => Some(progress),
                    None => self.tables.first_dead_letter(id)?.as_ref().map(Progress::of),
                };
                Ok(entry.insert(Changed {
                    before: now.as_ref().map(|progress| progress.state),
                    now,
                    dirty: false,
                }))
            }
        }
    }

    /// A dead letter as if nothing had become of it.
    pub(super) fn dead_letter(&mut self, id: DeadLetterId) -> Result<&mut Changed<DeadLetter, u64>> {
        match self.dead_letters.entry(id.0) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let now = self.tables.first_dead_letter(id)?;
                Ok(entry.insert(Changed {
                    before: now.as_ref().map(|dead_letter| dead_letter.group),
                    now,
                    dirty: false,
                }))
            }
        }
    }

    /// An operation without its selection.
    pub(super) fn operation(&mut self, id: OperationId) -> Result<&mut Operation> {
        match self.operations.entry(id.0) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let operation = self.tables.operation_row(id)?.ok_or_else(row::malformed)?;
                Ok(entry.insert(operation))
            }
        }
    }

    /// Puts an operation there.
    pub(super) fn set_operation(&mut self, operation: Operation) {
        self.operations.insert(operation.id.0, operation);
    }

    /// Adds all that changed to a batch, with the indices; answers how many more dead letters there are in each state.
    pub(super) fn write(&self, batch: &mut fjall::OwnedWriteBatch) -> [i64; STATES.len()] {
        let tables = self.tables;
        let mut counts = [0_i64; STATES.len()];
        let place = |state: DeadLetterState| row::number(&STATES, &state) as usize;
        for (number, changed) in &self.progress {
            let id = DeadLetterId(*number);
            let after = changed.now.as_ref().map(|progress| progress.state);
            if changed.before != after {
                if let Some(state) = changed.before {
                    batch.remove(&tables.states, row::state_key(state, id));
                    counts[place(state)] -= 1;
                }
                if let Some(state) = after {
                    batch.insert(&tables.states, row::state_key(state, id), []);
                    counts[place(state)] += 1;
                }
            }
            if changed.dirty {
                let key = number.to_be_bytes();
                match &changed.now {
                    Some(progress) => batch.insert(&tables.progress, key, progress.encode()),
                    None => batch.remove(&tables.progress, key),
                }
            }
        }
        for (number, changed) in &self.dead_letters {
            let id = DeadLetterId(*number);
            let after = changed.now.as_ref().map(|dead_letter| dead_letter.group);
            if changed.before != after {
                if let Some(group) = changed.before {
                    batch.remove(&tables.groups, row::group_key(group, id));
                }
                if let Some(group) = after {
                    batch.insert(&tables.groups, row::group_key(group, id), []);
                }
            }
            if changed.dirty {
                let key = number.to_be_bytes();
                match &changed.now {
                    Some(dead_letter) => {
                        batch.insert(&tables.dead_letters, key, row::encode_dead_letter(dead_letter));
                    }
                    None => batch.remove(&tables.dead_letters, key),
                }
            }
        }
        for (id, operation) in &self.operations {
            batch.insert(
                &tables.operations,
                id.to_be_bytes(),
                row::encode_operation(operation),
            );
            let running = row::frozen_key(OperationId(0), *id);
            if operation.state == OperationState::Running && operation.what.kind != OperationKind::Cancel {
                batch.insert(&tables.frozen, running, []);
            } else {
                batch.remove(&tables.frozen, running);
            }
        }
        counts
    }
}
