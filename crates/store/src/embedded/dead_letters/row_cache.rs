//! The rows of a commit batch: read on first use, changed in memory, and written together at the end.

use std::collections::{HashMap, hash_map::Entry};

use super::{
    Tables,
    progress::Progress,
    row::{self, STATES},
};
use crate::{
    DeadLetter, DeadLetterId, DeadLetterState, Operation, OperationId, OperationKind, OperationState, Result,
};

/// Rows with the uncommitted changes of the current batch.
pub(super) struct RowCache<'a> {
    tables: &'a Tables,
    dead_letters: HashMap<u64, CachedRow<DeadLetter, u64>>,
    progress: HashMap<u64, CachedRow<Progress, DeadLetterState>>,
    operations: HashMap<u64, Operation>,
}

/// A row and the value under which it is indexed.
pub(super) struct CachedRow<T, I> {
    /// The value in the stored index; `None` if the row is not indexed.
    indexed: Option<I>,
    /// The value to write; `None` deletes the row.
    pub(super) value: Option<T>,
    /// Whether the value must be written.
    pub(super) dirty: bool,
}

impl<'a> RowCache<'a> {
    /// Creates an empty cache.
    pub(super) fn new(tables: &'a Tables) -> Self {
        Self {
            tables,
            dead_letters: HashMap::new(),
            progress: HashMap::new(),
            operations: HashMap::new(),
        }
    }

    /// The progress of a dead letter.
    pub(super) fn progress(&mut self, id: DeadLetterId) -> Result<&mut CachedRow<Progress, DeadLetterState>> {
        match self.progress.entry(id.0) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let value = match self.tables.progress(id)? {
                    Some(progress) => Some(progress),
                    None => self.tables.initial_dead_letter(id)?.as_ref().map(Progress::of),
                };
                Ok(entry.insert(CachedRow {
                    indexed: value.as_ref().map(|progress| progress.state),
                    value,
                    dirty: false,
                }))
            }
        }
    }

    /// A dead letter as it was inserted, without its progress.
    pub(super) fn dead_letter(&mut self, id: DeadLetterId) -> Result<&mut CachedRow<DeadLetter, u64>> {
        match self.dead_letters.entry(id.0) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let value = self.tables.initial_dead_letter(id)?;
                Ok(entry.insert(CachedRow {
                    indexed: value.as_ref().map(|dead_letter| dead_letter.group),
                    value,
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

    /// Inserts or replaces an operation.
    pub(super) fn set_operation(&mut self, operation: Operation) {
        self.operations.insert(operation.id.0, operation);
    }

    /// Adds all changed rows and their index entries to a batch. Returns the change in the number of dead letters by
    /// state.
    pub(super) fn write(&self, batch: &mut fjall::OwnedWriteBatch) -> [i64; STATES.len()] {
        let tables = self.tables;
        let mut counts = [0_i64; STATES.len()];
        let index = |state: DeadLetterState| row::variant_number(&STATES, &state) as usize;
        for (number, cached) in &self.progress {
            let id = DeadLetterId(*number);
            let after = cached.value.as_ref().map(|progress| progress.state);
            if cached.indexed != after {
                if let Some(state) = cached.indexed {
                    batch.remove(&tables.states, row::state_key(state, id));
                    counts[index(state)] -= 1;
                }
                if let Some(state) = after {
                    batch.insert(&tables.states, row::state_key(state, id), []);
                    counts[index(state)] += 1;
                }
            }
            if cached.dirty {
                let key = number.to_be_bytes();
                match &cached.value {
                    Some(progress) => batch.insert(&tables.progress, key, progress.encode()),
                    None => batch.remove(&tables.progress, key),
                }
            }
        }
        for (number, cached) in &self.dead_letters {
            let id = DeadLetterId(*number);
            let after = cached.value.as_ref().map(|dead_letter| dead_letter.group);
            if cached.indexed != after {
                if let Some(group) = cached.indexed {
                    batch.remove(&tables.groups, row::group_key(group, id));
                }
                if let Some(group) = after {
                    batch.insert(&tables.groups, row::group_key(group, id), []);
                }
            }
            if cached.dirty {
                let key = number.to_be_bytes();
                match &cached.value {
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
            let running = row::selected_key(OperationId(0), *id);
            if operation.state == OperationState::Running && operation.what.kind != OperationKind::Cancel {
                batch.insert(&tables.selected, running, []);
            } else {
                batch.remove(&tables.selected, running);
            }
        }
        counts
    }
}
