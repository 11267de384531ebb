//! Between the domain's words and the ledger's.

use herald_model::{DeliveryState, Recipients, UserKey};
use herald_store::{Outcome, PartialDelivery};

use crate::domain::{LedgerState, Progress};

/// What is recorded of a chunk, in the domain's words.
pub(crate) fn recorded(
    recorded: Option<herald_store::RecordedOutcome>,
    recipients: &Recipients,
) -> LedgerState {
    let all_of = |users: &Recipients, state| users.iter().map(|user| (user, state)).collect::<Vec<_>>();
    let Some(herald_store::RecordedOutcome { revision, outcome }) = recorded else {
        return LedgerState::default();
    };
    match outcome {
        Outcome::Delivered { .. } => LedgerState {
            revision,
            settled: all_of(recipients, DeliveryState::Delivered),
            partial: Vec::new(),
        },
        Outcome::Mixed {
            delivered,
            suppressed,
            expired,
            dead,
            partial,
        } => {
            let mut settled: Vec<(UserKey, DeliveryState)> = all_of(&delivered, DeliveryState::Delivered);
            settled.extend(all_of(&suppressed, DeliveryState::Suppressed));
            settled.extend(all_of(&expired, DeliveryState::Expired));
            settled.extend(all_of(&dead, DeliveryState::Dead));
            LedgerState {
                revision,
                settled,
                partial: partial
                    .into_iter()
                    .map(|partial| (partial.user, partial.done))
                    .collect(),
            }
        }
    }
}

/// How far a chunk has come, in the ledger's words.
pub(crate) fn outcome(progress: &Progress) -> Outcome {
    let of = |state| Recipients::from_sorted(progress.settled(state));
    Outcome::Mixed {
        delivered: of(DeliveryState::Delivered),
        suppressed: of(DeliveryState::Suppressed),
        expired: of(DeliveryState::Expired),
        dead: of(DeliveryState::Dead),
        partial: progress
            .partial()
            .map(|(user, done)| PartialDelivery {
                user,
                done: done.to_vec(),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use herald_model::DeviceId;

    use super::*;
    use crate::domain::{Provider, Reason, Verdict};

    #[test]
    fn what_is_recorded_reads_back_as_it_was() {
        let users: Vec<UserKey> = (1..=5).map(UserKey).collect();
        let recipients = Recipients::from_sorted(users.iter().copied());
        let mut progress = Progress::resume(users, LedgerState::default());
        progress.settle(0, DeliveryState::Delivered);
        progress.settle(1, DeliveryState::Suppressed);
        progress.settle(2, DeliveryState::Dead);
        progress.expect(3, 2);
        progress.record(3, DeviceId(1), Provider::Webhook, Verdict::Accepted);
        let later = Verdict::Later {
            reason: Reason::Timeout,
            after: None,
        };
        progress.record(3, DeviceId(2), Provider::Webhook, later);

        let stored = herald_store::RecordedOutcome {
            revision: 4,
            outcome: outcome(&progress),
        };
        let resumed = Progress::resume(&recipients, recorded(Some(stored), &recipients));
        assert_eq!(outcome(&resumed), outcome(&progress));
        assert_eq!(resumed.revision(), 4);
        assert_eq!(resumed.counts(), progress.counts());
        assert_eq!(resumed.pending().count(), 2);
    }

    #[test]
    fn a_delivered_chunk_has_nobody_pending() {
        let recipients = Recipients::from_sorted((1..=5).map(UserKey));
        let stored = herald_store::RecordedOutcome {
            revision: 1,
            outcome: Outcome::Delivered { count: 5 },
        };
        let recorded = recorded(Some(stored), &recipients);
        let progress = Progress::resume(&recipients, recorded);
        assert!(!progress.is_pending());
    }
}
