//! The progress of a chunk from and to its outcome in the ledger.

use std::collections::BTreeMap;

use herald_model::{DeliveryState, Recipients, UserKey};
use herald_store::{FailedRecipient, Outcome, OutcomeDetails, PendingRecipient, SuppressedReason};

use super::Progress;

impl Progress {
    /// Takes over the recorded outcome. Ignores recorded users that are not recipients.
    pub(super) fn restore(&mut self, outcome: Outcome) {
        let Outcome::Mixed {
            delivered,
            suppressed,
            expired,
            dead,
            details,
        } = outcome
        else {
            for recipient in &mut self.recipients {
                recipient.state = DeliveryState::Delivered;
            }
            self.counts.delivered = self.recipients.len() as u32;
            return;
        };
        self.generation = details.generation;
        if let Some(expires_at) = details.expires_at {
            self.expires_at = self.expires_at.max(expires_at);
        }
        for (users, state) in [
            (&delivered, DeliveryState::Delivered),
            (&suppressed, DeliveryState::Suppressed),
            (&expired, DeliveryState::Expired),
            (&dead, DeliveryState::Dead),
        ] {
            for user in users {
                let Some(index) = self.find(user) else { continue };
                if self.recipients[index].state == DeliveryState::Pending
                    && let Some(count) = self.counts.count_mut(state)
                {
                    *count += 1;
                    self.recipients[index].state = state;
                }
            }
        }
        for (reason, users) in &details.suppressed {
            for user in users {
                if let Some(index) = self.find(user) {
                    self.recipients[index].suppressed = Some(*reason);
                }
            }
        }
        for pending in details.pending {
            if let Some(index) = self.find(pending.user) {
                self.recipients[index].devices = pending;
            }
        }
        for failed in details.failed {
            if let Some(index) = self.find(failed.user) {
                self.recipients[index].generation = failed.generation;
                self.recipients[index].devices.failed = failed.failures;
            }
        }
    }

    /// The outcome to record.
    pub(crate) fn outcome(&self) -> Outcome {
        let with_state = |state| {
            let with_state = self.recipients.iter().filter(move |r| r.state == state);
            with_state.map(|recipient| recipient.devices.user)
        };
        let settled = |state| Recipients::from_sorted(with_state(state));
        let mut suppressed: BTreeMap<SuppressedReason, Vec<UserKey>> = BTreeMap::new();
        let mut details = OutcomeDetails {
            generation: self.generation,
            ..OutcomeDetails::default()
        };
        for recipient in &self.recipients {
            match recipient.state {
                DeliveryState::Pending => {
                    let devices = &recipient.devices;
                    if *devices != PendingRecipient::new(devices.user) {
                        details.pending.push(devices.clone());
                    }
                }
                DeliveryState::Suppressed => {
                    if let Some(reason) = recipient.suppressed {
                        suppressed.entry(reason).or_default().push(recipient.devices.user);
                    }
                }
                DeliveryState::Expired | DeliveryState::Dead => {
                    let failures = &recipient.devices.failed;
                    if !failures.is_empty() || recipient.generation > 0 {
                        details.failed.push(FailedRecipient {
                            user: recipient.devices.user,
                            generation: recipient.generation,
                            failures: failures.clone(),
                        });
                    }
                }
                DeliveryState::Delivered => {}
            }
        }
        details.expires_at = (details.generation > 0).then_some(self.expires_at);
        details.suppressed = suppressed
            .into_iter()
            .map(|(reason, users)| (reason, Recipients::from_sorted(users)))
            .collect();
        Outcome::Mixed {
            delivered: settled(DeliveryState::Delivered),
            suppressed: settled(DeliveryState::Suppressed),
            expired: settled(DeliveryState::Expired),
            dead: settled(DeliveryState::Dead),
            details,
        }
    }
}
