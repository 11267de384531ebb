//! Dead letters and what was done about them.
//!
//! | keyspace | row |
//! |---|---|
//! | `letters` | letter → what it says, and what it began as |
//! | `letter_progress` | letter → what became of it; nothing as long as it is as it began |
//! | `letter_origins` | (stream, consumer, sequence) → letter: one letter a message |
//! | `letter_states` | (state, letter) → nothing |
//! | `letter_groups` | (group, letter) → nothing |
//! | `letter_acts` | act → what was done, how far it is |
//! | `letter_selections` | act → what was asked for |
//! | `letter_frozen` | (act, part) → letters it is about; (0, act) → nothing, for those that run |
//!
//! Acts are numbered from 1.

mod progress;
mod round;
mod row;
mod rows;
#[cfg(test)]
mod tests;

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use async_trait::async_trait;
use fjall::{Keyspace, Readable, Snapshot};
use herald_model::time::Micros;

use self::{
    progress::Progress,
    round::{Done, Job, Round},
    row::STATES,
};
use super::{
    database::{self, Database, map_err},
    rounds::Rounds,
};
use crate::{
    Act, ActId, ActState, Chosen, Error, ErrorKind, Inserted, Letter, LetterFilter, LetterGroup, LetterId,
    LetterPage, LetterState, NewAct, Order, Reopened, Reopening, Result, Step,
};

/// How many letters one commit writes before it leaves the rest to the next one. Those that want a few wait for no more than
/// that.
const ROUND_LETTERS: usize = 128;

/// How many letters one call of `scan` looks at.
const SCAN_LETTERS: usize = 10_000;

/// The embedded engine's [`DeadLetters`](crate::DeadLetters).
pub(crate) struct LetterBook {
    tables: Arc<Tables>,
    rounds: Rounds<Job, Done>,
}

struct Tables {
    database: Arc<Database>,
    letters: Keyspace,
    progress: Keyspace,
    origins: Keyspace,
    states: Keyspace,
    groups: Keyspace,
    acts: Keyspace,
    selections: Keyspace,
    frozen: Keyspace,
    /// Letters by state.
    counts: [AtomicI64; STATES.len()],
}

impl LetterBook {
    /// Opens the letters.
    pub(crate) fn open(database: &Arc<Database>) -> Result<Self> {
        let keyspace = |name| database.keyspace(name, database::options);
        let tables = Arc::new(Tables {
            letters: keyspace("letters")?,
            progress: keyspace("letter_progress")?,
            origins: keyspace("letter_origins")?,
            states: keyspace("letter_states")?,
            groups: keyspace("letter_groups")?,
            acts: keyspace("letter_acts")?,
            selections: keyspace("letter_selections")?,
            frozen: keyspace("letter_frozen")?,
            database: Arc::clone(database),
            counts: std::array::from_fn(|_| AtomicI64::new(0)),
        });
        for state in STATES {
            let rows = tables.states.prefix([row::number(&STATES, &state) as u8]);
            let count = i64::try_from(rows.count()).unwrap_or(i64::MAX);
            tables.counter(state).store(count, Ordering::Relaxed);
        }
        let mut last_act = match tables.acts.last_key_value() {
            Some(row) => row::last_number(&row.key().map_err(map_err)?)?,
            None => 0,
        };
        let shared = Arc::clone(&tables);
        let rounds = Rounds::start("letters", ROUND_LETTERS, Job::weight, move |jobs| {
            Round::run(&shared, &mut last_act, jobs)
        })?;
        Ok(Self { tables, rounds })
    }

    /// Forgets letters that DLQ stored before a moment, and acts done before another; answers how many rows that were.
    pub(crate) async fn trim(&self, letters: Micros, acts: Micros) -> Result<u64> {
        let mut removed = 0;
        loop {
            match self.rounds.run(Job::Trim(letters, acts)).await? {
                Done::Count(0) => return Ok(removed),
                Done::Count(some) => removed += some,
                _ => return Err(crossed()),
            }
        }
    }

    /// Reads many letters: too long for a thread that others wait for.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Tables) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let tables = Arc::clone(&self.tables);
        tokio::task::spawn_blocking(move || read(&tables))
            .await
            .unwrap_or_else(|error| {
                Err(Error::with_source(
                    ErrorKind::Unavailable,
                    "the reader of the letters ended",
                    error,
                ))
            })
    }

    async fn step(&self, job: Job) -> Result<Step> {
        match self.rounds.run(job).await? {
            Done::Step(step) => Ok(*step),
            _ => Err(crossed()),
        }
    }

    async fn act_of(&self, job: Job) -> Result<Act> {
        match self.rounds.run(job).await? {
            Done::Act(mut act) => {
                act.what.selection = self.tables.selection(act.id)?;
                Ok(*act)
            }
            _ => Err(crossed()),
        }
    }
}

impl Tables {
    fn letter(&self, id: LetterId) -> Result<Option<Letter>> {
        let Some(mut letter) = self.first_letter(id)? else {
            return Ok(None);
        };
        if let Some(progress) = self.progress(id)? {
            progress.put_into(&mut letter);
        }
        Ok(Some(letter))
    }

    /// A letter as if nothing had become of it.
    fn first_letter(&self, id: LetterId) -> Result<Option<Letter>> {
        let row = self.letters.get(id.0.to_be_bytes()).map_err(map_err)?;
        row.map(|row| row::decode_letter(id, &row)).transpose()
    }

    /// What became of a letter, if anything did.
    fn progress(&self, id: LetterId) -> Result<Option<Progress>> {
        let row = self.progress.get(id.0.to_be_bytes()).map_err(map_err)?;
        row.map(|row| Progress::decode(&row)).transpose()
    }

    /// An act without its selection.
    fn act_row(&self, id: ActId) -> Result<Option<Act>> {
        let row = self.acts.get(id.0.to_be_bytes()).map_err(map_err)?;
        row.map(|row| row::decode_act(id, &row)).transpose()
    }

    fn selection(&self, id: ActId) -> Result<bytes::Bytes> {
        let row = self.selections.get(id.0.to_be_bytes()).map_err(map_err)?;
        Ok(row.map(|row| row.to_vec().into()).unwrap_or_default())
    }

    fn act(&self, id: ActId) -> Result<Option<Act>> {
        let mut act = self.act_row(id)?;
        if let Some(act) = &mut act {
            act.what.selection = self.selection(id)?;
        }
        Ok(act)
    }

    fn counter(&self, state: LetterState) -> &AtomicI64 {
        &self.counts[row::number(&STATES, &state) as usize]
    }

    fn add_counts(&self, counts: [i64; STATES.len()]) {
        for (counter, count) in self.counts.iter().zip(counts) {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Letters that may pass, by the narrowest index there is, with their ids only as far as the index goes.
    fn candidates<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        filter: &LetterFilter,
        order: Order,
        after: Option<LetterId>,
    ) -> impl Iterator<Item = Result<Letter>> + use<'a> {
        let (keyspace, prefix) = match (filter.group, filter.state) {
            (Some(group), _) => (&self.groups, group.to_be_bytes().to_vec()),
            (None, Some(state)) => (&self.states, vec![row::number(&STATES, &state) as u8]),
            (None, None) => (&self.letters, Vec::new()),
        };
        let indexed = !prefix.is_empty();
        let key = |id: u64| [prefix.as_slice(), &id.to_be_bytes()].concat();
        let after = after.map(|id| id.0);
        let (from, to) = match order {
            Order::OldestFirst => (after.map_or(0, |id| id.saturating_add(1)), u64::MAX),
            Order::NewestFirst => (0, after.map_or(u64::MAX, |id| id.saturating_sub(1))),
        };
        // Nothing is less than 0 or more than the greatest.
        let none = match order {
            Order::OldestFirst => after == Some(u64::MAX),
            Order::NewestFirst => after == Some(0),
        };
        let mut rows = snapshot.range(keyspace, key(from)..=key(to));
        std::iter::from_fn(move || {
            if none {
                return None;
            }
            match order {
                Order::OldestFirst => rows.next(),
                Order::NewestFirst => rows.next_back(),
            }
        })
        .filter_map(move |row| {
            let read = || {
                let (key, value) = row.into_inner().map_err(map_err)?;
                let number = row::last_number(&key)?;
                let get = |keyspace| snapshot.get(keyspace, number.to_be_bytes()).map_err(map_err);
                let Some(value) = (if indexed { get(&self.letters)? } else { Some(value) }) else {
                    return Ok(None);
                };
                let mut letter = row::decode_letter(LetterId(number), &value)?;
                if let Some(row) = get(&self.progress)? {
                    Progress::decode(&row)?.put_into(&mut letter);
                }
                Ok(Some(letter))
            };
            read().transpose()
        })
    }

    fn scan(
        &self,
        filter: &LetterFilter,
        order: Order,
        after: Option<LetterId>,
        limit: usize,
    ) -> Result<LetterPage> {
        let snapshot = self.database.snapshot();
        let mut page = LetterPage::default();
        let mut examined = 0;
        for letter in self.candidates(&snapshot, filter, order, after) {
            let letter = letter?;
            examined += 1;
            let id = letter.id;
            if filter.passes(&letter) {
                page.letters.push(letter);
            }
            if page.letters.len() >= limit || examined >= SCAN_LETTERS {
                page.next = Some(id);
                break;
            }
        }
        Ok(page)
    }

    fn groups(&self, filter: &LetterFilter) -> Result<Vec<LetterGroup>> {
        let snapshot = self.database.snapshot();
        let mut failed = None;
        let letters = self
            .candidates(&snapshot, filter, Order::OldestFirst, None)
            .map_while(|letter| letter.map_err(|error| failed = Some(error)).ok())
            .filter(|letter| filter.passes(letter));
        let groups = LetterGroup::of(letters);
        match failed {
            None => Ok(groups),
            Some(error) => Err(error),
        }
    }
}

#[async_trait]
impl crate::DeadLetters for LetterBook {
    async fn insert(&self, letters: &[Letter]) -> Result<Vec<Inserted>> {
        match self.rounds.run(Job::Insert(letters.to_vec())).await? {
            Done::Inserted(inserted) => Ok(inserted),
            _ => Err(crossed()),
        }
    }

    async fn reopen(&self, reopening: &Reopening) -> Result<Reopened> {
        match self.rounds.run(Job::Reopen(reopening.clone())).await? {
            Done::Reopened(reopened) => Ok(reopened),
            _ => Err(crossed()),
        }
    }

    async fn get(&self, ids: &[LetterId]) -> Result<Vec<Option<Letter>>> {
        ids.iter().map(|id| self.tables.letter(*id)).collect()
    }

    async fn scan(
        &self,
        filter: &LetterFilter,
        order: Order,
        after: Option<LetterId>,
        limit: usize,
    ) -> Result<LetterPage> {
        let filter = filter.clone();
        self.read(move |tables| tables.scan(&filter, order, after, limit))
            .await
    }

    async fn groups(&self, filter: &LetterFilter) -> Result<Vec<LetterGroup>> {
        let filter = filter.clone();
        self.read(move |tables| tables.groups(&filter)).await
    }

    async fn count(&self, state: LetterState) -> Result<u64> {
        Ok(u64::try_from(self.tables.counter(state).load(Ordering::Relaxed)).unwrap_or(0))
    }

    async fn begin(&self, act: &NewAct, letters: &[Chosen]) -> Result<Act> {
        self.act_of(Job::Begin(act.clone(), letters.to_vec())).await
    }

    async fn claim(&self, act: ActId, limit: usize, redrive_after: u64, at: Micros) -> Result<Step> {
        self.step(Job::Claim {
            act,
            limit,
            redrive_after,
            at,
        })
        .await
    }

    async fn sent(&self, act: ActId, letters: &[(Chosen, u64)]) -> Result<()> {
        self.rounds.run(Job::Sent(act, letters.to_vec())).await.map(drop)
    }

    async fn resolve(&self, letters: &[Chosen], at: Micros) -> Result<u64> {
        match self.rounds.run(Job::Resolve(letters.to_vec(), at)).await? {
            Done::Count(count) => Ok(count),
            _ => Err(crossed()),
        }
    }

    async fn discard(&self, act: ActId, limit: usize, at: Micros) -> Result<Step> {
        self.step(Job::Discard { act, limit, at }).await
    }

    async fn finish(&self, act: ActId, state: ActState, reason: &str, at: Micros) -> Result<Act> {
        self.act_of(Job::Finish {
            act,
            state,
            reason: reason.into(),
            at,
        })
        .await
    }

    async fn act(&self, id: ActId) -> Result<Option<Act>> {
        self.tables.act(id)
    }

    async fn acts(&self, before: Option<ActId>, limit: usize) -> Result<Vec<Act>> {
        let end = before.map_or(u64::MAX, |act| act.0);
        self.tables
            .acts
            .range(..end.to_be_bytes())
            .rev()
            .take(limit)
            .map(|row| {
                let (key, value) = row.into_inner().map_err(map_err)?;
                let id = ActId(row::last_number(&key)?);
                let mut act = row::decode_act(id, &value)?;
                act.what.selection = self.tables.selection(id)?;
                Ok(act)
            })
            .collect()
    }

    async fn running(&self) -> Result<Vec<Act>> {
        let mut acts = Vec::new();
        for row in self.tables.frozen.prefix(0_u64.to_be_bytes()) {
            let id = ActId(row::last_number(&row.key().map_err(map_err)?)?);
            acts.extend(self.tables.act(id)?);
        }
        Ok(acts)
    }
}

fn crossed() -> Error {
    Error::new(ErrorKind::Corrupt, "an answer of the letters to another call")
}
