//! The rows that a round is about: read when they are needed, changed here, and written together at its end.

use std::collections::{HashMap, hash_map::Entry};

use super::{
    Tables,
    progress::Progress,
    row::{self, STATES},
};
use crate::{Act, ActId, ActKind, ActState, Letter, LetterId, LetterState, Result};

/// As they are in the round.
pub(super) struct Rows<'a> {
    tables: &'a Tables,
    letters: HashMap<u64, Changed<Letter, u64>>,
    progress: HashMap<u64, Changed<Progress, LetterState>>,
    acts: HashMap<u64, Act>,
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
            letters: HashMap::new(),
            progress: HashMap::new(),
            acts: HashMap::new(),
        }
    }

    /// What became of a letter.
    pub(super) fn progress(&mut self, id: LetterId) -> Result<&mut Changed<Progress, LetterState>> {
        match self.progress.entry(id.0) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let now = match self.tables.progress(id)? {
                    Some(progress) => Some(progress),
                    None => self.tables.first_letter(id)?.as_ref().map(Progress::of),
                };
                Ok(entry.insert(Changed {
                    before: now.as_ref().map(|progress| progress.state),
                    now,
                    dirty: false,
                }))
            }
        }
    }

    /// A letter as if nothing had become of it.
    pub(super) fn letter(&mut self, id: LetterId) -> Result<&mut Changed<Letter, u64>> {
        match self.letters.entry(id.0) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let now = self.tables.first_letter(id)?;
                Ok(entry.insert(Changed {
                    before: now.as_ref().map(|letter| letter.group),
                    now,
                    dirty: false,
                }))
            }
        }
    }

    /// An act without its selection.
    pub(super) fn act(&mut self, id: ActId) -> Result<&mut Act> {
        match self.acts.entry(id.0) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let act = self.tables.act_row(id)?.ok_or_else(row::malformed)?;
                Ok(entry.insert(act))
            }
        }
    }

    /// Puts an act there.
    pub(super) fn set_act(&mut self, act: Act) {
        self.acts.insert(act.id.0, act);
    }

    /// Adds all that changed to a batch, with the indices; answers how many more letters there are in each state.
    pub(super) fn write(&self, batch: &mut fjall::OwnedWriteBatch) -> [i64; STATES.len()] {
        let tables = self.tables;
        let mut counts = [0_i64; STATES.len()];
        let place = |state: LetterState| row::number(&STATES, &state) as usize;
        for (number, changed) in &self.progress {
            let id = LetterId(*number);
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
        for (number, changed) in &self.letters {
            let id = LetterId(*number);
            let after = changed.now.as_ref().map(|letter| letter.group);
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
                    Some(letter) => batch.insert(&tables.letters, key, row::encode_letter(letter)),
                    None => batch.remove(&tables.letters, key),
                }
            }
        }
        for (id, act) in &self.acts {
            batch.insert(&tables.acts, id.to_be_bytes(), row::encode_act(act));
            let running = row::frozen_key(ActId(0), *id);
            if act.state == ActState::Running && act.what.kind != ActKind::Cancel {
                batch.insert(&tables.frozen, running, []);
            } else {
                batch.remove(&tables.frozen, running);
            }
        }
        counts
    }
}
