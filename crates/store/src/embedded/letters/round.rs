//! The writes, done in rounds by one thread: each reads what it changes, and a round is committed at once.

use std::collections::{HashMap, hash_map::Entry};

use futures::executor::block_on;
use herald_model::time::Micros;

use super::{
    Tables,
    row::{self, STATES},
};
use crate::{
    ACTS_PER_LETTER, Act, ActId, ActKind, ActState, Chosen, Inserted, Letter, LetterId, LetterState, NewAct,
    Reopened, Reopening, Result, Step, embedded::records::map_err,
};

/// Letters in one row of what an act is about.
pub(super) const FROZEN_PART: u64 = 1_024;

/// Letters that one commit forgets.
const TRIM_LETTERS: usize = 1_000;

/// One write.
pub(super) enum Job {
    Insert(Vec<Letter>),
    Reopen(Reopening),
    Begin(NewAct, Vec<Chosen>),
    Claim {
        act: ActId,
        limit: usize,
        redrive_after: u64,
        at: Micros,
    },
    Sent(ActId, Vec<(Chosen, u64)>),
    Resolve(Vec<Chosen>, Micros),
    Discard {
        act: ActId,
        limit: usize,
        at: Micros,
    },
    Finish {
        act: ActId,
        state: ActState,
        reason: String,
        at: Micros,
    },
    /// Letters and acts older than these.
    Trim(Micros, Micros),
}

/// The answer to a [`Job`].
pub(super) enum Done {
    Inserted(Vec<Inserted>),
    Reopened(Reopened),
    Act(Box<Act>),
    Step(Box<Step>),
    Count(u64),
}

impl Job {
    /// How many letters it writes.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Insert(letters) => letters.len(),
            Self::Begin(_, letters) => 1 + letters.len() / 64,
            Self::Claim { limit, .. } | Self::Discard { limit, .. } => *limit,
            Self::Sent(_, letters) => letters.len(),
            Self::Resolve(letters, _) => letters.len(),
            Self::Trim(..) => TRIM_LETTERS,
            Self::Reopen(_) | Self::Finish { .. } => 1,
        }
    }
}

/// The round in hand: what is in it and can't be read yet.
pub(super) struct Round<'a> {
    tables: &'a Tables,
    batch: fjall::OwnedWriteBatch,
    letters: HashMap<u64, Changed>,
    origins: HashMap<Vec<u8>, u64>,
    acts: HashMap<u64, Act>,
    next_act: u64,
}

/// A letter in a round.
struct Changed {
    /// Where the indices have it.
    before: Option<(LetterState, u64)>,
    /// As it will be; `None`: it is not there.
    now: Option<Letter>,
    dirty: bool,
}

impl<'a> Round<'a> {
    /// Does jobs, and makes what they did durable.
    pub(super) fn run(tables: &'a Tables, last_act: &mut u64, jobs: Vec<Job>) -> Result<Vec<Result<Done>>> {
        let mut round = Round {
            tables,
            batch: tables.records.batch(),
            letters: HashMap::new(),
            origins: HashMap::new(),
            acts: HashMap::new(),
            next_act: *last_act + 1,
        };
        let mut answers = Vec::with_capacity(jobs.len());
        for job in jobs {
            answers.push(Ok(round.job(job)?));
        }
        // Raised even when the commit fails: an id that may have been told is not given again.
        *last_act = round.next_act - 1;
        round.commit()?;
        Ok(answers)
    }

    fn job(&mut self, job: Job) -> Result<Done> {
        Ok(match job {
            Job::Insert(letters) => Done::Inserted(
                letters
                    .into_iter()
                    .map(|letter| self.insert(letter))
                    .collect::<Result<_>>()?,
            ),
            Job::Reopen(reopening) => Done::Reopened(self.reopen(reopening)?),
            Job::Begin(act, letters) => Done::Act(Box::new(self.begin(act, &letters))),
            Job::Claim {
                act,
                limit,
                redrive_after,
                at,
            } => Done::Step(Box::new(self.step(act, limit, |letter, act| {
                letter.state = LetterState::Redriving;
                letter.round += 1;
                letter.redrive = Some(act.id);
                letter.redrive_sequence = 0;
                letter.updated_at = at;
                act.redrive_after = redrive_after;
            })?)),
            Job::Discard { act, limit, at } => {
                let mut step = self.step(act, limit, |letter, _| {
                    letter.state = LetterState::Discarded;
                    letter.updated_at = at;
                })?;
                if step.act.reached >= step.act.frozen {
                    step.act = self.finish(act, ActState::Done, String::new(), at)?;
                }
                Done::Step(Box::new(step))
            }
            Job::Sent(act, letters) => {
                let mut count = 0;
                for (chosen, sequence) in letters {
                    count += u64::from(self.change(chosen, |letter| {
                        letter.redrive == Some(act) && {
                            letter.redrive_sequence = sequence;
                            true
                        }
                    })?);
                }
                Done::Count(count)
            }
            Job::Resolve(letters, at) => {
                let mut resolved = 0;
                for chosen in letters {
                    resolved += u64::from(self.resolve(chosen, at)?);
                }
                Done::Count(resolved)
            }
            Job::Finish {
                act,
                state,
                reason,
                at,
            } => Done::Act(Box::new(self.finish(act, state, reason, at)?)),
            Job::Trim(letters, acts) => Done::Count(self.trim(letters, acts)?),
        })
    }

    fn insert(&mut self, mut letter: Letter) -> Result<Inserted> {
        let key = row::origin_key(&letter.origin);
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
                id: LetterId(id),
                new: false,
            });
        }
        let id = letter.id;
        letter.state = LetterState::Open;
        letter.round = 0;
        letter.redrive = None;
        letter.acts.clear();
        letter.redrive_sequence = 0;
        self.batch
            .insert(&self.tables.origins, key.clone(), id.0.to_be_bytes());
        self.origins.insert(key, id.0);
        let changed = self.entry(id)?;
        changed.now = Some(letter);
        changed.dirty = true;
        Ok(Inserted { id, new: true })
    }

    fn reopen(&mut self, reopening: Reopening) -> Result<Reopened> {
        let changed = self.entry(reopening.letter)?;
        let Some(letter) = &mut changed.now else {
            return Ok(Reopened::Unknown);
        };
        let was = letter.state;
        let is_news =
            letter.round == reopening.round && matches!(was, LetterState::Redriving | LetterState::Resolved);
        if !is_news {
            return Ok(Reopened::Known);
        }
        letter.state = LetterState::Open;
        letter.cause = reopening.cause;
        letter.reason = reopening.reason;
        letter.group = reopening.group;
        letter.group_reason = reopening.group_reason;
        letter.last_failed_at = letter.last_failed_at.max(reopening.failed_at);
        letter.updated_at = reopening.failed_at;
        changed.dirty = true;
        if let Some(act) = letter.redrive {
            let act = self.act(act)?;
            act.failed += 1;
            if was == LetterState::Resolved {
                act.resolved = act.resolved.saturating_sub(1);
            }
        }
        Ok(Reopened::Open)
    }

    fn begin(&mut self, what: NewAct, letters: &[Chosen]) -> Act {
        let id = ActId(self.next_act);
        self.next_act += 1;
        let parts = letters.chunks(FROZEN_PART as usize);
        for (part, letters) in (0_u64..).zip(parts) {
            let key = row::frozen_key(id, part);
            self.batch
                .insert(&self.tables.frozen, key, row::encode_frozen(letters));
        }
        self.batch.insert(
            &self.tables.selections,
            id.0.to_be_bytes(),
            what.selection.as_ref(),
        );
        let nothing = letters.is_empty();
        let act = Act {
            id,
            state: if nothing {
                ActState::Done
            } else {
                ActState::Running
            },
            reason: String::new(),
            ended_at: nothing.then_some(what.at),
            frozen: letters.len() as u64,
            reached: 0,
            skipped: 0,
            resolved: 0,
            failed: 0,
            redrive_after: 0,
            what,
        };
        self.acts.insert(id.0, act.clone());
        act
    }

    /// Takes an act's next letters and changes those that are as they were chosen.
    fn step(
        &mut self,
        act: ActId,
        limit: usize,
        mut change: impl FnMut(&mut Letter, &mut Act),
    ) -> Result<Step> {
        let mut now = self.act(act)?.clone();
        let mut letters = Vec::new();
        let mut left = match now.state {
            ActState::Running => limit as u64,
            _ => 0,
        }
        .min(now.frozen - now.reached);
        while left > 0 {
            let (part, from) = (now.reached / FROZEN_PART, now.reached % FROZEN_PART);
            let row = self
                .tables
                .frozen
                .get(row::frozen_key(act, part))
                .map_err(map_err)?
                .ok_or_else(row::malformed)?;
            let chosen = row::decode_frozen(&row)?;
            let taken = chosen.iter().skip(from as usize).take(left as usize);
            let before = now.reached;
            for chosen in taken {
                now.reached += 1;
                let entry = self.entry(chosen.id)?;
                match &mut entry.now {
                    Some(letter) if letter.state == LetterState::Open && letter.round == chosen.round => {
                        change(letter, &mut now);
                        letter.acts.push(act);
                        let surplus = letter.acts.len().saturating_sub(ACTS_PER_LETTER);
                        letter.acts.drain(..surplus);
                        letters.push(letter.clone());
                        entry.dirty = true;
                    }
                    _ => now.skipped += 1,
                }
            }
            if now.reached == before {
                return Err(row::malformed());
            }
            left -= now.reached - before;
        }
        self.acts.insert(act.0, now.clone());
        Ok(Step { letters, act: now })
    }

    fn resolve(&mut self, chosen: Chosen, at: Micros) -> Result<bool> {
        let mut redrive = None;
        let resolved = self.change(chosen, |letter| {
            letter.state == LetterState::Redriving && {
                letter.state = LetterState::Resolved;
                letter.updated_at = at;
                redrive = letter.redrive;
                true
            }
        })?;
        if let Some(act) = redrive {
            self.act(act)?.resolved += 1;
        }
        Ok(resolved)
    }

    fn finish(&mut self, act: ActId, state: ActState, reason: String, at: Micros) -> Result<Act> {
        let now = self.act(act)?;
        if now.state == ActState::Running {
            now.state = state;
            now.reason = reason;
            now.ended_at = Some(at);
            let now = now.clone();
            for part in 0..now.frozen.div_ceil(FROZEN_PART) {
                self.batch.remove(&self.tables.frozen, row::frozen_key(act, part));
            }
            return Ok(now);
        }
        Ok(now.clone())
    }

    fn trim(&mut self, letters: Micros, acts: Micros) -> Result<u64> {
        let mut removed = 0;
        for entry in self.tables.letters.iter().take(TRIM_LETTERS) {
            let (key, value) = entry.into_inner().map_err(map_err)?;
            let id = LetterId(row::last_number(&key)?);
            let letter = row::decode_letter(id, &value)?;
            if letter.stored_at >= letters {
                break;
            }
            // Its redrive still has to learn what became of it.
            if letter.state == LetterState::Redriving {
                continue;
            }
            self.batch
                .remove(&self.tables.origins, row::origin_key(&letter.origin));
            let changed = self.entry(id)?;
            changed.now = None;
            changed.dirty = true;
            removed += 1;
        }
        for entry in self.tables.acts.iter().take(TRIM_LETTERS) {
            let (key, value) = entry.into_inner().map_err(map_err)?;
            let act = row::decode_act(ActId(row::last_number(&key)?), &value)?;
            if act.what.at >= acts || act.state == ActState::Running {
                break;
            }
            self.batch.remove(&self.tables.acts, key.clone());
            self.batch.remove(&self.tables.selections, key);
            removed += 1;
        }
        Ok(removed)
    }

    /// Changes a letter that is still in this round, if `change` says so.
    fn change(&mut self, chosen: Chosen, change: impl FnOnce(&mut Letter) -> bool) -> Result<bool> {
        let entry = self.entry(chosen.id)?;
        let changed = match &mut entry.now {
            Some(letter) if letter.round == chosen.round => change(letter),
            _ => false,
        };
        entry.dirty |= changed;
        Ok(changed)
    }

    fn entry(&mut self, id: LetterId) -> Result<&mut Changed> {
        match self.letters.entry(id.0) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let now = self.tables.letter(id)?;
                Ok(entry.insert(Changed {
                    before: now.as_ref().map(|letter| (letter.state, letter.group)),
                    now,
                    dirty: false,
                }))
            }
        }
    }

    fn act(&mut self, id: ActId) -> Result<&mut Act> {
        match self.acts.entry(id.0) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let act = self.tables.act_row(id)?.ok_or_else(row::malformed)?;
                Ok(entry.insert(act))
            }
        }
    }

    fn commit(mut self) -> Result<()> {
        let mut counts = [0_i64; STATES.len()];
        let place = |state: LetterState| row::number(&STATES, &state) as usize;
        for (id, changed) in &self.letters {
            if !changed.dirty {
                continue;
            }
            let (id, tables) = (LetterId(*id), self.tables);
            let after = changed.now.as_ref().map(|letter| (letter.state, letter.group));
            if changed.before != after {
                if let Some((state, group)) = changed.before {
                    self.batch.remove(&tables.states, row::state_key(state, id));
                    self.batch.remove(&tables.groups, row::group_key(group, id));
                    counts[place(state)] -= 1;
                }
                if let Some((state, group)) = after {
                    self.batch.insert(&tables.states, row::state_key(state, id), []);
                    self.batch.insert(&tables.groups, row::group_key(group, id), []);
                    counts[place(state)] += 1;
                }
            }
            match &changed.now {
                Some(letter) => {
                    self.batch
                        .insert(&tables.letters, id.0.to_be_bytes(), row::encode_letter(letter));
                }
                None => self.batch.remove(&tables.letters, id.0.to_be_bytes()),
            }
        }
        for (id, act) in &self.acts {
            self.batch
                .insert(&self.tables.acts, id.to_be_bytes(), row::encode_act(act));
            let running = row::frozen_key(ActId(0), *id);
            if act.state == ActState::Running && act.what.kind != ActKind::Cancel {
                self.batch.insert(&self.tables.frozen, running, []);
            } else {
                self.batch.remove(&self.tables.frozen, running);
            }
        }
        if !self.batch.is_empty() {
            block_on(self.tables.records.commit(self.batch))?;
        }
        self.tables.add_counts(counts);
        Ok(())
    }
}
