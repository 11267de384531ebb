//! Pure decisions: the outcome of a partially delivered chunk.

use std::{collections::BTreeSet, ops::Range};

use herald_model::{Recipients, UserKey};
use herald_store::{Outcome, OutcomeDetails};

/// The outcome of a chunk after an attempt that failed for some recipients. Recipients reached by this or an earlier
/// attempt (`before`) are delivered, other recipients in `failed` are dead, all others are pending. `reached` and
/// `failed` are indices into `recipients`.
pub(crate) fn partial_outcome(
    recipients: &Recipients,
    before: Option<&Outcome>,
    reached: impl IntoIterator<Item = Range<usize>>,
    failed: impl IntoIterator<Item = usize>,
) -> Outcome {
    let users: Vec<UserKey> = recipients.iter().collect();
    let mut delivered: BTreeSet<UserKey> = match before {
        Some(Outcome::Mixed { delivered, .. }) => delivered.iter().collect(),
        Some(Outcome::Delivered { .. }) => users.iter().copied().collect(),
        None => BTreeSet::new(),
    };
    delivered.extend(reached.into_iter().flat_map(|part| &users[part]));
    if delivered.len() == users.len() {
        return Outcome::Delivered {
            count: recipients.len(),
        };
    }
    let failed = failed.into_iter().map(|index| users[index]);
    Outcome::Mixed {
        dead: Recipients::from_sorted(failed.filter(|user| !delivered.contains(user))),
        delivered: Recipients::from_sorted(delivered),
        suppressed: Recipients::default(),
        expired: Recipients::default(),
        details: OutcomeDetails::default(),
    }
}

/// The reason for terminating a message that failed for `failed` of `all` recipients.
pub(crate) fn isolated_reason(reason: &str, failed: u32, all: u32) -> String {
    format!("{reason} (for {failed} of {all} recipients, isolated)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(keys: impl IntoIterator<Item = u32>) -> Recipients {
        Recipients::from_sorted(keys.into_iter().map(UserKey))
    }

    fn mixed(delivered: impl IntoIterator<Item = u32>, dead: impl IntoIterator<Item = u32>) -> Outcome {
        Outcome::Mixed {
            delivered: users(delivered),
            suppressed: Recipients::default(),
            expired: Recipients::default(),
            dead: users(dead),
            details: OutcomeDetails::default(),
        }
    }

    #[test]
    fn a_recipient_reached_by_any_attempt_is_delivered_and_never_dead() {
        let all = users(11..=15);
        assert_eq!(
            partial_outcome(&all, None, [0..2, 3..5], [2]),
            mixed([11, 12, 14, 15], [13])
        );
        // An earlier attempt reached recipient 13; recipient 11 was dead.
        let before = mixed([13], [11]);
        assert_eq!(
            partial_outcome(&all, Some(&before), [0..2, 4..5], [2, 3]),
            mixed([11, 12, 13, 15], [14])
        );
        assert_eq!(
            partial_outcome(&all, Some(&before), [0..2, 3..5], [2]),
            Outcome::Delivered { count: 5 }
        );
    }

    #[test]
    fn a_recipient_not_attempted_is_pending() {
        let outcome = partial_outcome(&users(11..=15), None, std::iter::once(0..2), []);
        assert_eq!(outcome, mixed([11, 12], []));
    }

    #[test]
    fn a_delivered_chunk_stays_delivered() {
        let before = Outcome::Delivered { count: 2 };
        let outcome = partial_outcome(&users([1, 2]), Some(&before), [], [0, 1]);
        assert_eq!(outcome, before);
    }
}
