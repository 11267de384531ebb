//! The writes, done in rounds by one thread: each reads what it changes, and a round is committed at once.

use std::collections::HashMap;

use futures::executor::block_on;
use herald_model::time::Micros;

use super::{Tables, progress::Progress, row, rows::Rows};
use crate::{
    ACTS_PER_LETTER, Act, ActId, ActState, Chosen, Inserted, Letter, LetterId, LetterState, NewAct, Reopened,
    Reopening, Result, Step, embedded::database::map_err,
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
    rows: Rows<'a>,
    origins: HashMap<Vec<u8>, u64>,
    next_act: u64,
}

impl<'a> Round<'a> {
    /// Does jobs, and makes what they did durable.
    pub(super) fn run(tables: &'a Tables, last_act: &mut u64, jobs: Vec<Job>) -> Result<Vec<Result<Done>>> {
        let mut round = Round {
            tables,
            batch: tables.database.batch(),
            rows: Rows::new(tables),
            origins: HashMap::new(),
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
            } => Done::Step(Box::new(self.step(act, limit, |progress, act| {
                progress.state = LetterState::Redriving;
                progress.round += 1;
                progress.redrive = Some(act.id);
                progress.redrive_sequence = 0;
                progress.updated_at = at;
                act.redrive_after = redrive_after;
            })?)),
            Job::Discard { act, limit, at } => {
                let mut step = self.step(act, limit, |progress, _| {
                    progress.state = LetterState::Discarded;
                    progress.updated_at = at;
                })?;
                if step.act.reached >= step.act.frozen {
                    step.act = self.finish(act, ActState::Done, String::new(), at)?;
                }
                Done::Step(Box::new(step))
            }
            Job::Sent(act, letters) => {
                let mut count = 0;
                for (chosen, sequence) in letters {
                    count += u64::from(self.change(chosen, |progress| {
                        progress.redrive == Some(act) && {
                            progress.redrive_sequence = sequence;
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
        self.rows.progress(id)?.now = Some(Progress::of(&letter));
        let changed = self.rows.letter(id)?;
        changed.now = Some(letter);
        changed.dirty = true;
        Ok(Inserted { id, new: true })
    }

    fn reopen(&mut self, reopening: Reopening) -> Result<Reopened> {
        let changed = self.rows.progress(reopening.letter)?;
        let Some(progress) = &mut changed.now else {
            return Ok(Reopened::Unknown);
        };
        let was = progress.state;
        let is_news = progress.round == reopening.round
            && matches!(was, LetterState::Redriving | LetterState::Resolved);
        if !is_news {
            return Ok(Reopened::Known);
        }
        progress.state = LetterState::Open;
        progress.updated_at = reopening.failed_at;
        let redrive = progress.redrive;
        changed.dirty = true;
        let changed = self.rows.letter(reopening.letter)?;
        let letter = changed.now.as_mut().ok_or_else(row::malformed)?;
        letter.cause = reopening.cause;
        letter.reason = reopening.reason;
        letter.group = reopening.group;
        letter.group_reason = reopening.group_reason;
        letter.last_failed_at = letter.last_failed_at.max(reopening.failed_at);
        changed.dirty = true;
        if let Some(act) = redrive {
            let act = self.rows.act(act)?;
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
        self.rows.set_act(act.clone());
        act
    }

    /// Takes an act's next letters and changes those that are as they were chosen.
    fn step(
        &mut self,
        act: ActId,
        limit: usize,
        mut change: impl FnMut(&mut Progress, &mut Act),
    ) -> Result<Step> {
        let mut now = self.rows.act(act)?.clone();
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
                let changed = self.rows.progress(chosen.id)?;
                let progress = changed
                    .now
                    .as_mut()
                    .filter(|progress| progress.state == LetterState::Open && progress.round == chosen.round);
                let Some(progress) = progress else {
                    now.skipped += 1;
                    continue;
                };
                change(progress, &mut now);
                progress.acts.push(act);
                let surplus = progress.acts.len().saturating_sub(ACTS_PER_LETTER);
                progress.acts.drain(..surplus);
                let progress = progress.clone();
                changed.dirty = true;
                let letter = &self.rows.letter(chosen.id)?.now;
                let mut letter = letter.clone().ok_or_else(row::malformed)?;
                progress.put_into(&mut letter);
                letters.push(letter);
            }
            if now.reached == before {
                return Err(row::malformed());
            }
            left -= now.reached - before;
        }
        self.rows.set_act(now.clone());
        Ok(Step { letters, act: now })
    }

    fn resolve(&mut self, chosen: Chosen, at: Micros) -> Result<bool> {
        let mut redrive = None;
        let resolved = self.change(chosen, |progress| {
            progress.state == LetterState::Redriving && {
                progress.state = LetterState::Resolved;
                progress.updated_at = at;
                redrive = progress.redrive;
                true
            }
        })?;
        if let Some(act) = redrive {
            self.rows.act(act)?.resolved += 1;
        }
        Ok(resolved)
    }

    fn finish(&mut self, act: ActId, state: ActState, reason: String, at: Micros) -> Result<Act> {
        let now = self.rows.act(act)?;
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
            let progress = self.rows.progress(id)?.now.as_ref();
            if progress.is_some_and(|progress| progress.state == LetterState::Redriving) {
                continue;
            }
            self.batch
                .remove(&self.tables.origins, row::origin_key(&letter.origin));
            let changed = self.rows.progress(id)?;
            changed.now = None;
            changed.dirty = true;
            let changed = self.rows.letter(id)?;
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

    /// Changes what became of a letter that is still in this round, if `change` says so.
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
