//! The progress of one chunk.

mod record;
#[cfg(test)]
mod tests;

use std::time::Duration;

use herald_model::{DeliveryState, DeviceId, Recipients, UserKey, time::Timestamp};
use herald_store::{
    DeviceFailure, DeviceRetry, Outcome, PendingRecipient, PushFailure, RecordedOutcome, SuppressedReason,
};

use super::{Backoff, Counts, FailureSummary, Sent, Verdict};

/// Minimum time between two messages for the waiting recipients of a chunk. It bounds the work of a chunk of which many
/// devices wait, each on its own schedule.
pub(crate) const WAKE_INTERVAL: Duration = Duration::from_secs(1);

/// The progress of one chunk, as one message continues it. Methods identify a recipient by its index in the chunk.
///
/// *Invariant:* a settled recipient stays settled, except that a redrive makes dead recipients pending. The counts and
/// the pending recipients always add up to all recipients.
#[derive(Debug)]
pub(crate) struct Progress {
    revision: u64,
    /// Generation in the ledger: of the newest copy of the chunk's message.
    generation: u32,
    /// Generation of this message.
    message_generation: u32,
    /// End of the pushes' time to live.
    expires_at: Timestamp,
    recipients: Vec<Recipient>,
    counts: Counts,
    /// The ledger lacks a change.
    changed: bool,
    /// This message has changed a recipient.
    advanced: bool,
    unrecorded: u32,
    /// The outcome of a record that failed: it may have been written.
    uncertain: Option<Outcome>,
    /// Failures of this attempt, for the log.
    failures: FailureSummary,
}

#[derive(Debug)]
struct Recipient {
    state: DeliveryState,
    suppressed: Option<SuppressedReason>,
    /// Generation of the message that settled a dead recipient.
    generation: u32,
    /// What is known about the devices. Of a dead or expired recipient, `failed` has all failures.
    devices: PendingRecipient,
    /// Devices without a verdict in this attempt.
    awaited: u32,
    /// Devices whose push expired while they waited.
    lapsed: Vec<DeviceRetry>,
    expired: bool,
    deleted: bool,
}

impl Recipient {
    fn is_due(&self, now: Timestamp) -> bool {
        let waiting = &self.devices.waiting;
        self.state == DeliveryState::Pending
            && self.awaited == 0
            && (waiting.is_empty() || waiting.iter().any(|retry| retry.next_at <= now))
    }
}

/// When a chunk with pending recipients continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wake {
    /// Generation of the copy that continues.
    pub(crate) generation: u32,
    /// Delay of the copy.
    pub(crate) after: Duration,
}

impl Progress {
    /// Resumes from the recorded outcome, for a message of this generation whose pushes expire at this time. Ignores
    /// recorded users that are not recipients.
    pub(crate) fn resume(
        recipients: &Recipients,
        recorded: Option<RecordedOutcome>,
        generation: u32,
        expires_at: Timestamp,
    ) -> Self {
        let all = recipients.iter().map(|user| Recipient {
            state: DeliveryState::Pending,
            suppressed: None,
            generation: 0,
            devices: PendingRecipient::new(user),
            awaited: 0,
            lapsed: Vec::new(),
            expired: false,
            deleted: false,
        });
        let mut progress = Self {
            revision: 0,
            generation: 0,
            message_generation: generation,
            expires_at,
            recipients: all.collect(),
            counts: Counts::default(),
            changed: false,
            advanced: false,
            unrecorded: 0,
            uncertain: None,
            failures: FailureSummary::default(),
        };
        if let Some(RecordedOutcome { revision, outcome }) = recorded {
            progress.revision = revision;
            progress.restore(outcome);
        }
        progress
    }

    /// Makes all dead recipients pending, for a redrive.
    pub(crate) fn revive_dead(&mut self) {
        for recipient in &mut self.recipients {
            if recipient.state == DeliveryState::Dead {
                recipient.state = DeliveryState::Pending;
                recipient.devices = PendingRecipient::new(recipient.devices.user);
                self.counts.dead -= 1;
                self.changed = true;
                self.advanced = true;
            }
        }
    }

    /// End of the pushes' time to live: the latest that a message of the chunk has named.
    pub(crate) fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// The pending recipients with a device that can be tried now: index, and what is known about the devices.
    pub(crate) fn due(&self, now: Timestamp) -> impl Iterator<Item = (usize, &PendingRecipient)> {
        let all = self.recipients.iter().enumerate();
        all.filter(move |(_, recipient)| recipient.is_due(now))
            .map(|(index, recipient)| (index, &recipient.devices))
    }

    /// What is known about the devices of a recipient.
    pub(crate) fn devices(&self, index: usize) -> &PendingRecipient {
        &self.recipients[index].devices
    }

    /// Forgets the waiting devices of a recipient that are not among its `registered` ones any more.
    pub(crate) fn retain_waiting(&mut self, index: usize, registered: &[DeviceId]) {
        let waiting = &mut self.recipients[index].devices.waiting;
        let before = waiting.len();
        waiting.retain(|retry| registered.contains(&retry.device));
        if waiting.len() < before {
            self.changed = true;
            self.advanced = true;
        }
    }

    /// Suppresses a pending recipient, or settles it as delivered or dead if a device accepted or refused the push.
    pub(crate) fn suppress(&mut self, index: usize, reason: SuppressedReason) {
        self.finish(index, DeliveryState::Suppressed, Some(reason));
    }

    /// Settles all pending recipients of an expired push.
    pub(crate) fn expire_pending(&mut self) {
        for index in 0..self.recipients.len() {
            self.finish(index, DeliveryState::Expired, None);
        }
    }

    /// Sets the number of devices to send to. [`record`](Self::record) must be called once for each.
    pub(crate) fn expect_verdicts(&mut self, index: usize, devices: u32) {
        self.recipients[index].awaited += devices;
    }

    /// Records the verdict of one device. The last verdict settles the recipient unless a device waits. `share`, from 0
    /// to 1, is the random part of the delay of a retry.
    pub(crate) fn record(
        &mut self,
        index: usize,
        sent: &Sent,
        now: Timestamp,
        backoff: &Backoff,
        share: f64,
    ) {
        if sent.verdict == Verdict::Unclaimed {
            // Nothing happened. The device keeps awaiting its verdict, so this attempt does not try it again.
            return;
        }
        self.changed = true;
        self.advanced = true;
        let recipient = &mut self.recipients[index];
        recipient.awaited = recipient.awaited.saturating_sub(1);
        let devices = &mut recipient.devices;
        let waiting = devices
            .waiting
            .iter()
            .position(|retry| retry.device == sent.device);
        let before = waiting.map(|position| devices.waiting.remove(position));
        match sent.verdict {
            Verdict::Accepted => {
                devices.done.push(sent.device);
                self.unrecorded += 1;
            }
            Verdict::Gone => {
                self.failures.add(&sent.gone());
            }
            Verdict::Deleted => recipient.deleted = true,
            Verdict::Refused(reason) => {
                let failure = sent.failure(reason);
                self.failures.add(&failure);
                devices.failed.push(failure);
            }
            Verdict::Retry { reason, after } => {
                let attempts = before.map_or(0, |retry| retry.attempts);
                let (attempts, delay) = backoff.next(attempts, reason, after, share);
                let failure = sent.failure(reason);
                self.failures.add(&failure);
                devices.waiting.push(DeviceRetry {
                    device: sent.device,
                    attempts,
                    next_at: now.plus(delay),
                    failure: failure.failure,
                });
            }
            Verdict::Expired => {
                recipient.expired = true;
                recipient.lapsed.extend(before);
            }
            Verdict::Unclaimed => {}
        }
        if recipient.awaited == 0 && recipient.devices.waiting.is_empty() {
            if recipient.expired {
                self.finish(index, DeliveryState::Expired, None);
            } else if recipient.deleted {
                self.finish(
                    index,
                    DeliveryState::Suppressed,
                    Some(SuppressedReason::PostDeleted),
                );
            } else {
                self.finish(
                    index,
                    DeliveryState::Suppressed,
                    Some(SuppressedReason::DeviceGone),
                );
            }
        }
    }

    /// Settles all pending recipients after the last attempt: as delivered if a device accepted the push, or else as
    /// dead.
    pub(crate) fn settle_all_pending(&mut self) {
        for index in 0..self.recipients.len() {
            self.finish(index, DeliveryState::Dead, None);
        }
    }

    /// Settles a recipient that can't be read because of a permanent error.
    pub(crate) fn settle_isolated(&mut self, index: usize, error: &str) {
        self.recipients[index].devices.failed.push(DeviceFailure {
            device: None,
            failure: PushFailure::new(error, ""),
        });
        self.finish(index, DeliveryState::Dead, None);
    }

    /// Settles a pending recipient that nothing more is sent to: as delivered if a device accepted the push, as dead if
    /// a device refused it and the recipient still wants it, or else in this state.
    fn finish(&mut self, index: usize, otherwise: DeliveryState, reason: Option<SuppressedReason>) {
        let recipient = &mut self.recipients[index];
        if recipient.state != DeliveryState::Pending {
            return;
        }
        let wanted = matches!(
            reason,
            None | Some(
                SuppressedReason::NoDevice | SuppressedReason::DeviceGone | SuppressedReason::DeviceDisabled
            )
        );
        let state = if !recipient.devices.done.is_empty() {
            DeliveryState::Delivered
        } else if wanted && !recipient.devices.failed.is_empty() {
            DeliveryState::Dead
        } else {
            otherwise
        };
        let waiting = std::mem::take(&mut recipient.devices.waiting);
        let lapsed = std::mem::take(&mut recipient.lapsed).into_iter();
        recipient
            .devices
            .failed
            .extend(lapsed.chain(waiting).map(|retry| DeviceFailure {
                device: Some(retry.device),
                failure: retry.failure,
            }));
        let Some(count) = self.counts.count_mut(state) else {
            return;
        };
        *count += 1;
        recipient.state = state;
        recipient.suppressed = reason.filter(|_| state == DeliveryState::Suppressed);
        recipient.generation = self.message_generation;
        self.changed = true;
        self.advanced = true;
    }

    /// When the chunk continues; `None` if no recipient is pending. A message that has changed a recipient, or is the
    /// newest one, is followed by a copy of a new generation. Any other message only makes sure that the copy exists.
    pub(crate) fn next_wake(&mut self, now: Timestamp) -> Option<Wake> {
        let after = self.wake_after(now)?;
        if self.advanced || self.message_generation >= self.generation {
            self.generation = self.generation.max(self.message_generation).saturating_add(1);
            self.changed = true;
        }
        Some(Wake {
            generation: self.generation,
            after,
        })
    }

    /// Delay until the next device can be tried or the push expires, at least [`WAKE_INTERVAL`]; `None` if no recipient
    /// is pending.
    pub(crate) fn wake_after(&self, now: Timestamp) -> Option<Duration> {
        let pending = self
            .recipients
            .iter()
            .filter(|r| r.state == DeliveryState::Pending);
        let next = pending.map(|recipient| {
            let times = recipient.devices.waiting.iter().map(|retry| retry.next_at);
            times.min().unwrap_or(now)
        });
        let next = next.min()?.min(self.expires_at);
        Some(next.since(now).max(WAKE_INTERVAL))
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

    /// Marks the chunk as claimed with this revision.
    pub(crate) fn mark_claimed(&mut self, revision: u64) {
        self.revision = revision;
    }

    /// Marks the progress as recorded with this revision.
    pub(crate) fn mark_recorded(&mut self, revision: u64) {
        self.revision = revision;
        self.changed = false;
        self.unrecorded = 0;
        self.uncertain = None;
    }

    /// Notes that a record of this outcome failed, and may have been written.
    pub(crate) fn mark_uncertain(&mut self, outcome: Outcome) {
        self.uncertain = Some(outcome);
    }

    /// Whether a record failed that may have been written.
    pub(crate) fn is_uncertain(&self) -> bool {
        self.uncertain.is_some()
    }

    /// Takes over the revision of a record that failed, if it was written all the same.
    pub(crate) fn resolve_uncertain(&mut self, recorded: &RecordedOutcome) -> bool {
        let written =
            recorded.revision == self.revision + 1 && self.uncertain.as_ref() == Some(&recorded.outcome);
        if written {
            self.revision = recorded.revision;
            self.uncertain = None;
        }
        written
    }

    /// Whether a recipient is pending.
    pub(crate) fn is_pending(&self) -> bool {
        self.counts.total() as usize != self.recipients.len()
    }

    /// The failures of this attempt.
    pub(crate) fn failures(&self) -> &FailureSummary {
        &self.failures
    }

    /// The failures of the recipients that messages of this message's generation have marked dead: the dead letter of
    /// this message must cover them. `None` if there are none. The text is the same at every attempt.
    pub(crate) fn dead_reason(&self) -> Option<String> {
        let own = self
            .recipients
            .iter()
            .filter(|r| r.state == DeliveryState::Dead && r.generation == self.message_generation);
        let mut any = false;
        let mut summary = FailureSummary::default();
        for recipient in own {
            any = true;
            for failure in &recipient.devices.failed {
                summary.add(failure);
            }
        }
        any.then(|| summary.reason(self.recipients.len()))
    }

    fn find(&self, user: UserKey) -> Option<usize> {
        self.recipients
            .binary_search_by_key(&user, |recipient| recipient.devices.user)
            .ok()
    }
}
