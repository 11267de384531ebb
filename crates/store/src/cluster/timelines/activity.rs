//! Which users are active. Timelines of inactive users are not written.
//!
//! PostgreSQL has the day of each user's last read; each process samples the inactive users from it. The rules that make
//! this right although samples are old:
//!
//! - Workers suppress only with a sample of at most two intervals of age; so after a returning user is recorded, every
//!   worker writes the user's timeline again two intervals later.
//! - A returning user's timeline is invalidated, then the user is recorded as active, then the timeline is rebuilt, in
//!   this order: a process that dies in between leaves a timeline that the next read rebuilds. Until three intervals
//!   after that it is provisional: each read rebuilds it, and so does the first read after.
//! - For readers a user counts as inactive one day sooner than for workers, so no difference in when processes notice
//!   that a day has passed makes a reader trust a timeline that a worker does not write.
//! - Before a worker suppresses the deliveries to a user, PostgreSQL has a mark of that, which the user's return removes.
//!   Readers don't trust the timeline of a marked user, so it can't pass for complete after `active_days` was raised or
//!   set to 0. While processes have different `active_days`, readers learn of new marks with their next sample.
//! - A user without a record is new: workers write the timeline and record the user as active on that day.

use std::time::{Duration, Instant};

use herald_model::{UserKey, time::Timestamp};
use parking_lot::{Mutex, RwLock};

use super::{
    bits::Bits,
    state::{UserActivity, ViewState},
};
use crate::Result;

/// Maximum number of users whose records wait to be written. Further users are recorded at a later delivery or read.
const WAITING_MAX: usize = 1_000_000;

/// Overlap of the times that two samples read, 10 minutes: a transaction can be committed after a later one.
const RETURNS_OVERLAP_US: i64 = 600_000_000;

/// Maximum number of users recorded in one statement.
const RECORDS_PER_STATEMENT: usize = 10_000;

/// Maximum number of users read in one statement.
const USERS_PER_STATEMENT: i64 = 100_000;

/// What this process knows of the activity of users.
pub(super) struct Activity {
    active_days: u32,
    interval: Duration,
    sample: RwLock<Sample>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Sample {
    /// When the newest sample began.
    at: Option<Instant>,
    /// The day of the last full sample.
    day: i32,
    /// Time of PostgreSQL at which the newest sample began.
    server_time_us: i64,
    /// Users with a record.
    known: Bits,
    /// Marked users for whom workers don't write.
    inactive: Bits,
    /// Users whose timelines readers don't trust: the marked ones, the inactive ones, and those who are inactive
    /// tomorrow.
    dormant: Bits,
}

#[derive(Default)]
struct Waiting {
    day: i32,
    /// Users who have read on this day.
    read: Bits,
    readers: Vec<i64>,
    new: Vec<i64>,
}

impl Activity {
    pub(super) fn new(active_days: u32, interval: Duration) -> Self {
        Self {
            active_days,
            interval,
            sample: RwLock::default(),
            waiting: Mutex::default(),
        }
    }

    fn is_on(&self) -> bool {
        self.active_days > 0
    }

    /// How long the timeline of a returned user is provisional.
    pub(super) fn provisional(&self) -> Duration {
        self.interval * 3
    }

    /// Calls `check` with the inactive users, if any are to be suppressed now.
    pub(super) fn with_inactive<T>(&self, check: impl FnOnce(Option<&Bits>) -> T) -> T {
        let sample = self.sample.read();
        let fresh = sample.at.is_some_and(|at| at.elapsed() < self.interval * 2);
        check((self.is_on() && fresh && !sample.inactive.is_empty()).then_some(&sample.inactive))
    }

    /// Remembers recipients without a record, to record them.
    pub(super) fn note_recipients(&self, users: impl Iterator<Item = UserKey>) {
        if !self.is_on() {
            return;
        }
        let new: Vec<UserKey> = {
            let sample = self.sample.read();
            if sample.at.is_none() {
                return;
            }
            users.filter(|user| !sample.known.contains(*user)).collect()
        };
        if new.is_empty() {
            return;
        }
        let mut waiting = self.waiting.lock();
        if waiting.new.len() + new.len() <= WAITING_MAX {
            let mut sample = self.sample.write();
            for user in new {
                if sample.known.insert(user) {
                    waiting.new.push(user.0.into());
                }
            }
        }
    }

    /// Notes a read. Returns whether the timeline can be out of date because the user was inactive.
    pub(super) fn note_read(&self, user: UserKey) -> bool {
        let today = today();
        {
            let sample = self.sample.read();
            // A process that could not sample for a day trusts nothing.
            if sample.dormant.contains(user) || sample.day + 1 < today {
                return true;
            }
        }
        if !self.is_on() {
            return false;
        }
        let mut waiting = self.waiting.lock();
        if waiting.day != today {
            waiting.day = today;
            waiting.read = Bits::default();
        }
        if waiting.readers.len() < WAITING_MAX && waiting.read.insert(user) {
            waiting.readers.push(user.0.into());
        }
        false
    }

    /// Whether a user's timeline is not written, or was not until lately.
    pub(super) fn is_dormant(&self, user: UserKey) -> bool {
        self.sample.read().dormant.contains(user)
    }

    /// Records a user as active, durably. The timeline must be invalidated before.
    pub(super) async fn record_return(&self, state: &ViewState, user: UserKey) -> Result<()> {
        state.record_return(user, today()).await?;
        let mut sample = self.sample.write();
        sample.inactive.remove(user);
        sample.dormant.remove(user);
        Ok(())
    }

    /// Writes the records that wait. Those that could not be written wait again.
    pub(super) async fn write_records(&self, state: &ViewState) -> Result<()> {
        let (readers, new) = {
            let mut waiting = self.waiting.lock();
            (
                std::mem::take(&mut waiting.readers),
                std::mem::take(&mut waiting.new),
            )
        };
        let (mut readers, mut new) = (&readers[..], &new[..]);
        let written = self.write_parts(state, &mut readers, &mut new).await;
        if written.is_err() {
            let mut waiting = self.waiting.lock();
            waiting.readers.extend(readers);
            waiting.new.extend(new);
        }
        written
    }

    /// Writes records part by part, and leaves those that are not written.
    async fn write_parts(&self, state: &ViewState, readers: &mut &[i64], new: &mut &[i64]) -> Result<()> {
        while let (part @ [_, ..], rest) = new.split_at(new.len().min(RECORDS_PER_STATEMENT)) {
            state.record_new(part, today()).await?;
            *new = rest;
        }
        while let (part @ [_, ..], rest) = readers.split_at(readers.len().min(RECORDS_PER_STATEMENT)) {
            state.record_reads(part, today()).await?;
            *readers = rest;
        }
        Ok(())
    }

    /// Samples the inactive users: all of them once a day, else those who returned or are marked since.
    pub(super) async fn sample(&self, state: &ViewState) -> Result<()> {
        let at = Instant::now();
        let server_time_us = state.server_time().await?;
        let today = today();
        let (full, since) = {
            let sample = self.sample.read();
            (sample.at.is_none() || sample.day != today, sample.server_time_us)
        };
        let since = if full {
            let next = self.read_all(state, today).await?;
            *self.sample.write() = next;
            server_time_us
        } else {
            since
        };
        // The returns last: they remove the marks.
        let suppressed = state
            .suppressed_since(since - RETURNS_OVERLAP_US, self.inactive_before(today))
            .await?;
        let returned = state.returned_since(since - RETURNS_OVERLAP_US).await?;
        let mut sample = self.sample.write();
        for user in suppressed {
            sample.dormant.insert(user);
        }
        for user in returned {
            sample.inactive.remove(user);
            sample.dormant.remove(user);
        }
        sample.at = Some(at);
        sample.server_time_us = server_time_us;
        Ok(())
    }

    /// The first day on which a read makes a user active; the earliest one if all users are active.
    fn inactive_before(&self, today: i32) -> i32 {
        match i32::try_from(self.active_days) {
            Ok(0) => i32::MIN,
            days => today - days.unwrap_or(i32::MAX / 2),
        }
    }

    /// Reads the activity of all users, and marks those whose timelines are not written from now on.
    async fn read_all(&self, state: &ViewState, today: i32) -> Result<Sample> {
        let mut sample = Sample {
            day: today,
            ..Sample::default()
        };
        let inactive_before = self.inactive_before(today);
        let mut after = -1;
        loop {
            let users = state
                .activity_after(after, self.is_on(), USERS_PER_STATEMENT)
                .await?;
            let Some(last) = users.last() else { break };
            after = last.user;
            let mut unmarked = Vec::new();
            for UserActivity {
                user,
                day,
                suppressed,
            } in users
            {
                let Ok(key) = u32::try_from(user).map(UserKey) else {
                    continue;
                };
                sample.known.insert(key);
                if suppressed || day <= inactive_before {
                    sample.dormant.insert(key);
                }
                if day < inactive_before {
                    if suppressed {
                        sample.inactive.insert(key);
                    } else {
                        unmarked.push(user);
                    }
                }
            }
            for users in unmarked.chunks(RECORDS_PER_STATEMENT) {
                for user in state.record_suppressed(users, inactive_before).await? {
                    if let Ok(user) = u32::try_from(user) {
                        sample.inactive.insert(UserKey(user));
                    }
                }
            }
        }
        Ok(sample)
    }
}

/// Days since 1970.
fn today() -> i32 {
    i32::try_from(Timestamp::now().0 / 86_400_000_000).unwrap_or(i32::MAX)
}
