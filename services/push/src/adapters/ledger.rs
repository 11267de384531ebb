//! Conversion between the types of the domain and of the ledger.

use herald_model::{DeliveryState, Recipients, UserKey};
use herald_store::{Outcome, OutcomeDetails, PendingRecipient};

use crate::domain::{LedgerState, Progress};

/// Converts the recorded outcome of a chunk to the domain type.
pub(crate) fn ledger_state(
    recorded: Option<herald_store::RecordedOutcome>,
    recipients: &Recipients,
) -> LedgerState {
    let with_state = |users: &Recipients, state| users.iter().map(|user| (user, state)).collect::<Vec<_>>();
    let Some(herald_store::RecordedOutcome { revision, outcome }) = recorded else {
        return LedgerState::default();
    };
    match outcome {
        Outcome::Delivered { .. } => LedgerState {
            revision,
            settled: with_state(recipients, DeliveryState::Delivered),
            partial: Vec::new(),
        },
        Outcome::Mixed {
            delivered,
            suppressed,
            expired,
            dead,
            details,
        } => {
            let mut settled: Vec<(UserKey, DeliveryState)> = with_state(&delivered, DeliveryState::Delivered);
            settled.extend(with_state(&suppressed, DeliveryState::Suppressed));
            settled.extend(with_state(&expired, DeliveryState::Expired));
            settled.extend(with_state(&dead, DeliveryState::Dead));
            LedgerState {
                revision,
                settled,
                partial: details
                    .pending
                    .into_iter()
                    .map(|partial| (partial.user, partial.done))
                    .collect(),
            }
        }
    }
}

/// Converts the progress of a chunk to the outcome to record.
pub(crate) fn outcome(progress: &Progress) -> Outcome {
    let settled_as = |state| Recipients::from_sorted(progress.settled(state));
    Outcome::Mixed {
        delivered: settled_as(DeliveryState::Delivered),
        suppressed: settled_as(DeliveryState::Suppressed),
        expired: settled_as(DeliveryState::Expired),
        dead: settled_as(DeliveryState::Dead),
        details: OutcomeDetails {
            pending: progress
                .partial()
                .map(|(user, done)| PendingRecipient {
                    user,
                    done: done.to_vec(),
                    waiting: Vec::new(),
                })
                .collect(),
            ..OutcomeDetails::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use herald_model::DeviceId;

    use super::*;
    use crate::domain::{Provider, Reason, Verdict};

    #[test]
    fn a_recorded_outcome_is_read_back_unchanged() {
        let users: Vec<UserKey> = (1..=5).map(UserKey).collect();
        let recipients = Recipients::from_sorted(users.iter().copied());
        let mut progress = Progress::resume(users, LedgerState::default());
        progress.settle(0, DeliveryState::Delivered);
        progress.settle(1, DeliveryState::Suppressed);
        progress.settle(2, DeliveryState::Dead);
        progress.expect_verdicts(3, 2);
        progress.record(3, DeviceId(1), Provider::Webhook, Verdict::Accepted);
        let timeout = Verdict::Retry {
            reason: Reason::Timeout,
            after: None,
        };
        progress.record(3, DeviceId(2), Provider::Webhook, timeout);

        let stored = herald_store::RecordedOutcome {
            revision: 4,
            outcome: outcome(&progress),
        };
        let resumed = Progress::resume(&recipients, ledger_state(Some(stored), &recipients));
        assert_eq!(outcome(&resumed), outcome(&progress));
        assert_eq!(resumed.revision(), 4);
        assert_eq!(resumed.counts(), progress.counts());
        assert_eq!(resumed.pending().count(), 2);
    }

    #[test]
    fn a_delivered_chunk_has_no_pending_recipient() {
        let recipients = Recipients::from_sorted((1..=5).map(UserKey));
        let stored = herald_store::RecordedOutcome {
            revision: 1,
            outcome: Outcome::Delivered { count: 5 },
        };
        let progress = Progress::resume(&recipients, ledger_state(Some(stored), &recipients));
        assert!(!progress.is_pending());
    }
}
