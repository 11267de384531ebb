//! The progress of one chunk.

use std::{collections::BTreeMap, fmt::Write as _, ops::Sub, time::Duration};

use herald_model::{DeliveryState, DeviceId, UserKey};

use super::{Provider, Reason, Verdict};

/// Counts of settled recipients.
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

    fn count_mut(&mut self, state: DeliveryState) -> Option<&mut u32> {
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

/// The progress that earlier attempts recorded in the ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LedgerState {
    /// Revision of the chunk; 0 if nothing is recorded.
    pub(crate) revision: u64,
    /// Settled recipients.
    pub(crate) settled: Vec<(UserKey, DeliveryState)>,
    /// Pending recipients with the devices that accepted the push.
    pub(crate) partial: Vec<(UserKey, Vec<DeviceId>)>,
}

/// The progress of one chunk. Methods identify a recipient by its index in the chunk.
///
/// *Invariant:* a settled recipient stays settled, except that a redrive makes dead recipients pending. The counts and
/// the pending recipients always add up to all recipients.
#[derive(Debug)]
pub(crate) struct Progress {
    revision: u64,
    recipients: Vec<Recipient>,
    counts: Counts,
    changed: bool,
    unrecorded: u32,
    retry_after: Option<Duration>,
    /// Number of failures that are not retried, by provider and reason.
    final_failures: BTreeMap<(Provider, Reason), u32>,
    /// Number of isolated recipients.
    isolated: u32,
    /// The error of the first isolated recipient.
    isolation_error: Option<String>,
}

#[derive(Debug)]
struct Recipient {
    user: UserKey,
    state: DeliveryState,
    /// Devices that accepted the push; unused once the recipient is settled.
    done: Vec<DeviceId>,
    /// Devices without a verdict in this attempt.
    awaited: u32,
    /// The last transient error of this attempt.
    transient: Option<(Provider, Reason)>,
    refused: bool,
    expired: bool,
}

impl Progress {
    /// Resumes from the recorded state. Ignores recorded users that are not recipients.
    pub(crate) fn resume(recipients: impl IntoIterator<Item = UserKey>, recorded: LedgerState) -> Self {
        let recipients = recipients.into_iter().map(|user| Recipient {
            user,
            state: DeliveryState::Pending,
            done: Vec::new(),
            awaited: 0,
            transient: None,
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
            final_failures: BTreeMap::new(),
            isolated: 0,
            isolation_error: None,
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

    /// Makes all dead recipients pending, for a redrive.
    pub(crate) fn revive_dead(&mut self) {
        for recipient in &mut self.recipients {
            if recipient.state == DeliveryState::Dead {
                recipient.state = DeliveryState::Pending;
                self.counts.dead -= 1;
                self.changed = true;
            }
        }
    }

    /// The pending recipients: index, user, and the devices that accepted the push.
    pub(crate) fn pending(&self) -> impl Iterator<Item = (usize, UserKey, &[DeviceId])> {
        let all = self.recipients.iter().enumerate();
        all.filter(|(_, r)| r.state == DeliveryState::Pending)
            .map(|(index, r)| (index, r.user, &r.done[..]))
    }

    /// The devices of a recipient that accepted the push.
    pub(crate) fn done(&self, index: usize) -> &[DeviceId] {
        &self.recipients[index].done
    }

    /// Settles a pending recipient.
    pub(crate) fn settle(&mut self, index: usize, state: DeliveryState) {
        let recipient = &mut self.recipients[index];
        if recipient.state != DeliveryState::Pending {
            return;
        }
        if let Some(count) = self.counts.count_mut(state) {
            *count += 1;
            recipient.state = state;
            self.changed = true;
        }
    }

    /// Sets the number of devices to send to. [`record`](Self::record) must be called once for each.
    pub(crate) fn expect_verdicts(&mut self, index: usize, devices: u32) {
        self.recipients[index].awaited += devices;
    }

    /// Records the verdict of one device. The last verdict settles the recipient unless a device needs a retry.
    pub(crate) fn record(&mut self, index: usize, device: DeviceId, provider: Provider, verdict: Verdict) {
        let recipient = &mut self.recipients[index];
        recipient.awaited = recipient.awaited.saturating_sub(1);
        match verdict {
            Verdict::Accepted => {
                recipient.done.push(device);
                self.changed = true;
                self.unrecorded += 1;
            }
            Verdict::Gone | Verdict::Deleted => {}
            Verdict::Refused(reason) => {
                recipient.refused = true;
                *self.final_failures.entry((provider, reason)).or_default() += 1;
            }
            Verdict::Retry { reason, after } => {
                recipient.transient = Some((provider, reason));
                self.retry_after = self.retry_after.max(after);
            }
            Verdict::Expired => recipient.expired = true,
        }
        if recipient.awaited == 0 && recipient.transient.is_none() {
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

    /// Settles all pending recipients after the last attempt: as delivered if a device accepted the push, or else as
    /// dead.
    pub(crate) fn settle_all_pending(&mut self) {
        for index in 0..self.recipients.len() {
            let recipient = &self.recipients[index];
            if recipient.state != DeliveryState::Pending {
                continue;
            }
            if let Some(failure) = recipient.transient {
                *self.final_failures.entry(failure).or_default() += 1;
            }
            self.settle_failed(index);
        }
    }

    /// Settles a recipient that can't be read because of a permanent error.
    pub(crate) fn settle_isolated(&mut self, index: usize, error: &str) {
        self.isolated += 1;
        self.isolation_error.get_or_insert_with(|| error.into());
        self.settle_failed(index);
    }

    /// Settles a recipient as delivered if a device accepted the push, or else as dead.
    fn settle_failed(&mut self, index: usize) {
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

    /// The users with this state, ascending.
    pub(crate) fn settled(&self, state: DeliveryState) -> impl Iterator<Item = UserKey> {
        self.recipients
            .iter()
            .filter(move |r| r.state == state)
            .map(|r| r.user)
    }

    /// Pending recipients with at least one device that accepted the push, and these devices.
    pub(crate) fn partial(&self) -> impl Iterator<Item = (UserKey, &[DeviceId])> {
        self.pending()
            .filter(|(_, _, done)| !done.is_empty())
            .map(|(_, user, done)| (user, done))
    }

    /// Counts of the settled recipients.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether the progress has changes that the ledger lacks.
    pub(crate) fn is_changed(&self) -> bool {
        self.changed
    }

    /// Number of accepted pushes that a crash would send again.
    pub(crate) fn unrecorded(&self) -> u32 {
        self.unrecorded
    }

    /// The last recorded revision.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Marks the progress as recorded with this revision.
    pub(crate) fn mark_recorded(&mut self, revision: u64) {
        self.revision = revision;
        self.changed = false;
        self.unrecorded = 0;
    }

    /// Whether a recipient is pending.
    pub(crate) fn is_pending(&self) -> bool {
        self.counts.total() as usize != self.recipients.len()
    }

    /// The longest delay that a provider requested in this attempt.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Describes the failures of dead and pending recipients. The text is the same for the same failures.
    pub(crate) fn failures(&self) -> String {
        let mut failures = self.final_failures.clone();
        for recipient in self
            .recipients
            .iter()
            .filter(|r| r.state == DeliveryState::Pending)
        {
            if let Some(failure) = recipient.transient {
                *failures.entry(failure).or_default() += 1;
            }
        }
        let mut text = String::new();
        if let Some(error) = &self.isolation_error {
            let (isolated, all) = (self.isolated, self.recipients.len());
            text = format!("{error} (for {isolated} of {all} recipients, isolated)");
        }
        for ((provider, reason), count) in failures {
            let comma = if text.is_empty() { "" } else { ", " };
            // Writing to a `String` can't fail.
            let _ = write!(text, "{comma}{} {reason}: {count}", provider.as_str());
        }
        if text.is_empty() {
            "not attempted".into()
        } else {
            text
        }
    }

    fn find(&self, user: UserKey) -> Option<usize> {
        self.recipients.binary_search_by_key(&user, |r| r.user).ok()
    }
}

#[cfg(test)]
mod tests;
