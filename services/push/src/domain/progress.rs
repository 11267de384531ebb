//! How far one chunk has come.

use std::{collections::BTreeMap, fmt::Write as _, ops::Sub, time::Duration};

use herald_model::{DeliveryState, DeviceId, UserKey};

use super::{Provider, Reason, Verdict};

/// Settled recipients in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Counts {
    pub(crate) delivered: u32,
    pub(crate) suppressed: u32,
    pub(crate) expired: u32,
    pub(crate) dead: u32,
}

impl Counts {
    pub(crate) fn total(self) -> u32 {
        self.delivered + self.suppressed + self.expired + self.dead
    }

    fn of(&mut self, state: DeliveryState) -> Option<&mut u32> {
        match state {
            DeliveryState::Pending => None,
            DeliveryState::Delivered => Some(&mut self.delivered),
            DeliveryState::Suppressed => Some(&mut self.suppressed),
            DeliveryState::Expired => Some(&mut self.expired),
            DeliveryState::Dead => Some(&mut self.dead),
        }
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            delivered: self.delivered.saturating_sub(other.delivered),
            suppressed: self.suppressed.saturating_sub(other.suppressed),
            expired: self.expired.saturating_sub(other.expired),
            dead: self.dead.saturating_sub(other.dead),
        }
    }
}

/// What earlier attempts left in the ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LedgerState {
    /// Which revision of the chunk it is; 0: nothing is recorded.
    pub(crate) revision: u64,
    /// Recipients with a final state.
    pub(crate) settled: Vec<(UserKey, DeliveryState)>,
    /// Pending ones with the devices that have the push.
    pub(crate) partial: Vec<(UserKey, Vec<DeviceId>)>,
}

/// How far one chunk has come. Recipients are named by their place in it.
///
/// *Invariant:* a final state never changes, but that dead ones are owed again when they are redriven, and what is neither final nor open is pending, so the counts and the
/// pending ones always add up to all recipients.
#[derive(Debug)]
pub(crate) struct Progress {
    revision: u64,
    recipients: Vec<Recipient>,
    counts: Counts,
    changed: bool,
    unrecorded: u32,
    retry_after: Option<Duration>,
    given_up: BTreeMap<(Provider, Reason), u32>,
    /// How many were given up because nothing can be read of them, and why the first of them.
    isolated: u32,
    fault: Option<String>,
}

#[derive(Debug)]
struct Recipient {
    user: UserKey,
    state: DeliveryState,
    /// Devices that have the push; of no more interest once the state is final.
    done: Vec<DeviceId>,
    /// Devices that were not heard of yet in this attempt.
    waiting: u32,
    later: Option<(Provider, Reason)>,
    refused: bool,
    expired: bool,
}

impl Progress {
    /// Goes on from what is recorded. Whoever is recorded and not among the recipients is ignored.
    pub(crate) fn resume(recipients: impl IntoIterator<Item = UserKey>, recorded: LedgerState) -> Self {
        let recipients = recipients.into_iter().map(|user| Recipient {
            user,
            state: DeliveryState::Pending,
            done: Vec::new(),
            waiting: 0,
            later: None,
            refused: false,
            expired: false,
        });
        let mut progress = Self {
            revision: recorded.revision,
            recipients: recipients.collect(),
            counts: Counts::default(),
            changed: false,
            unrecorded: 0,
            retry_after: None,
            given_up: BTreeMap::new(),
            isolated: 0,
            fault: None,
        };
        for (user, state) in recorded.settled {
            if let Some(index) = progress.find(user) {
                progress.settle(index, state);
            }
        }
        for (user, done) in recorded.partial {
            if let Some(index) = progress.find(user) {
                progress.recipients[index].done = done;
            }
        }
        progress.mark_recorded(recorded.revision);
        progress
    }

    /// Makes all that were given up pending: somebody wants them to be tried again.
    pub(crate) fn revive_dead(&mut self) {
        for recipient in &mut self.recipients {
            if recipient.state == DeliveryState::Dead {
                recipient.state = DeliveryState::Pending;
                self.counts.dead -= 1;
                self.changed = true;
            }
        }
    }

    /// The pending recipients: place, who, and the devices that have the push.
    pub(crate) fn pending(&self) -> impl Iterator<Item = (usize, UserKey, &[DeviceId])> {
        let all = self.recipients.iter().enumerate();
        all.filter(|(_, r)| r.state == DeliveryState::Pending)
            .map(|(index, r)| (index, r.user, &r.done[..]))
    }

    /// The devices of a recipient that have the push.
    pub(crate) fn done(&self, index: usize) -> &[DeviceId] {
        &self.recipients[index].done
    }

    /// Gives a recipient a final state.
    pub(crate) fn settle(&mut self, index: usize, state: DeliveryState) {
        let recipient = &mut self.recipients[index];
        if recipient.state != DeliveryState::Pending {
            return;
        }
        if let Some(count) = self.counts.of(state) {
            *count += 1;
            recipient.state = state;
            self.changed = true;
        }
    }

    /// So many devices of a recipient will be heard of by [`record`](Self::record).
    pub(crate) fn expect(&mut self, index: usize, devices: u32) {
        self.recipients[index].waiting += devices;
    }

    /// Takes note of what came of one device; with the last one of a recipient the recipient is settled, if it can be.
    pub(crate) fn record(&mut self, index: usize, device: DeviceId, provider: Provider, verdict: Verdict) {
        let recipient = &mut self.recipients[index];
        recipient.waiting = recipient.waiting.saturating_sub(1);
        match verdict {
            Verdict::Accepted => {
                recipient.done.push(device);
                self.changed = true;
                self.unrecorded += 1;
            }
            Verdict::Gone | Verdict::Deleted => {}
            Verdict::Refused(reason) => {
                recipient.refused = true;
                *self.given_up.entry((provider, reason)).or_default() += 1;
            }
            Verdict::Later { reason, after } => {
                recipient.later = Some((provider, reason));
                self.retry_after = self.retry_after.max(after);
            }
            Verdict::Expired => recipient.expired = true,
        }
        if recipient.waiting == 0 && recipient.later.is_none() {
            let state = if !recipient.done.is_empty() {
                DeliveryState::Delivered
            } else if recipient.refused {
                DeliveryState::Dead
            } else if recipient.expired {
                DeliveryState::Expired
            } else {
                DeliveryState::Suppressed
            };
            self.settle(index, state);
        }
    }

    /// Gives up on all who are still pending: there is no other attempt.
    pub(crate) fn give_up(&mut self) {
        for index in 0..self.recipients.len() {
            let recipient = &self.recipients[index];
            if recipient.state != DeliveryState::Pending {
                continue;
            }
            if let Some(failure) = recipient.later {
                *self.given_up.entry(failure).or_default() += 1;
            }
            self.mark_dead(index);
        }
    }

    /// Gives up on a recipient of whom nothing can be read, because of a fault.
    pub(crate) fn isolate(&mut self, index: usize, fault: &str) {
        self.isolated += 1;
        self.fault.get_or_insert_with(|| fault.into());
        self.mark_dead(index);
    }

    /// One reached on some device is delivered.
    fn mark_dead(&mut self, index: usize) {
        let reached = !self.recipients[index].done.is_empty();
        self.settle(
            index,
            if reached {
                DeliveryState::Delivered
            } else {
                DeliveryState::Dead
            },
        );
    }

    /// Who has this final state, ascending.
    pub(crate) fn settled(&self, state: DeliveryState) -> impl Iterator<Item = UserKey> {
        self.recipients
            .iter()
            .filter(move |r| r.state == state)
            .map(|r| r.user)
    }

    /// Pending recipients with the devices that have the push, where there are any.
    pub(crate) fn partial(&self) -> impl Iterator<Item = (UserKey, &[DeviceId])> {
        self.pending()
            .filter(|(_, _, done)| !done.is_empty())
            .map(|(_, user, done)| (user, done))
    }

    /// All that is settled.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether there is something that the ledger doesn't have.
    pub(crate) fn is_changed(&self) -> bool {
        self.changed
    }

    /// Devices that have the push and would get it again if the process died now.
    pub(crate) fn unrecorded(&self) -> u32 {
        self.unrecorded
    }

    /// The revision of the ledger's that this goes on from.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// The ledger has all of it, as this revision.
    pub(crate) fn mark_recorded(&mut self, revision: u64) {
        self.revision = revision;
        self.changed = false;
        self.unrecorded = 0;
    }

    /// Whether somebody is pending.
    pub(crate) fn is_pending(&self) -> bool {
        self.counts.total() as usize != self.recipients.len()
    }

    /// The longest wait that a provider asked for in this attempt.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Why devices were given up, or are pending, in words that are the same for the same failures.
    pub(crate) fn failures(&self) -> String {
        let mut failures = self.given_up.clone();
        for recipient in self
            .recipients
            .iter()
            .filter(|r| r.state == DeliveryState::Pending)
        {
            if let Some(failure) = recipient.later {
                *failures.entry(failure).or_default() += 1;
            }
        }
        let mut text = String::new();
        if let Some(fault) = &self.fault {
            let (isolated, all) = (self.isolated, self.recipients.len());
            text = format!("{fault} (for {isolated} of {all} recipients, isolated)");
        }
        for ((provider, reason), count) in failures {
            let comma = if text.is_empty() { "" } else { ", " };
            // Writing to a String can't fail.
            let _ = write!(text, "{comma}{} {reason}: {count}", provider.as_str());
        }
        if text.is_empty() {
            "not tried this time".into()
        } else {
            text
        }
    }

    fn find(&self, user: UserKey) -> Option<usize> {
        self.recipients.binary_search_by_key(&user, |r| r.user).ok()
    }
}

#[cfg(test)]
#[path = "progress_tests.rs"]
mod tests;
