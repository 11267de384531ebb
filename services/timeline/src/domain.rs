//! Pure decisions: the outcome of a chunk that was not delivered to all its recipients.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use herald_model::{Recipients, UserKey};
use herald_store::{Outcome, OutcomeDetails, SuppressedReason};

/// Recipients whose timelines don't get a post, by reason.
pub(crate) type Suppressed = Vec<(SuppressedReason, Recipients)>;

/// The recipients that are in none of the suppressed sets.
pub(crate) fn without_suppressed(recipients: &Recipients, suppressed: &Suppressed) -> Recipients {
    if suppressed.is_empty() {
        return recipients.clone();
    }
    let left_out: BTreeSet<UserKey> = suppressed.iter().flat_map(|(_, users)| users.iter()).collect();
    Recipients::from_sorted(recipients.iter().filter(|user| !left_out.contains(user)))
}

/// The outcome of a chunk after an attempt that did not deliver to all recipients. Recipients reached by this or an
/// earlier attempt (`before`) are delivered. Of the others, those that this attempt has suppressed are suppressed,
/// recipients in `failed` are dead, those that an earlier attempt has suppressed stay so, and all others are pending.
/// `done` has the ranges of this attempt with their suppressed recipients; it and `failed` are indices into
/// `recipients`.
pub(crate) fn partial_outcome(
    recipients: &Recipients,
    before: Option<&Outcome>,
    done: Vec<(Range<usize>, Suppressed)>,
    failed: impl IntoIterator<Item = usize>,
) -> Outcome {
    let users: Vec<UserKey> = recipients.iter().collect();
    let mut delivered = BTreeSet::new();
    let mut suppressed_before = BTreeMap::new();
    match before {
        Some(Outcome::Mixed {
            delivered: reached,
            details,
            ..
        }) => {
            delivered.extend(reached);
            for (reason, set) in &details.suppressed {
                suppressed_before.extend(set.iter().map(|user| (user, *reason)));
            }
        }
        Some(Outcome::Delivered { .. }) => delivered.extend(&users),
        None => {}
    }
    let mut suppressed = BTreeMap::new();
    for (range, sets) in done {
        let before = suppressed.len();
        for (reason, set) in sets {
            suppressed.extend(set.iter().map(|user| (user, reason)));
        }
        let all = &users[range];
        if suppressed.len() == before {
            delivered.extend(all);
        } else {
            delivered.extend(all.iter().filter(|user| !suppressed.contains_key(user)));
        }
    }
    let dead: BTreeSet<UserKey> = failed
        .into_iter()
        .map(|index| users[index])
        .filter(|user| !delivered.contains(user) && !suppressed.contains_key(user))
        .collect();
    for (user, reason) in suppressed_before {
        if !dead.contains(&user) {
            suppressed.entry(user).or_insert(reason);
        }
    }
    // A post that is on a timeline stays there when its user becomes inactive.
    suppressed.retain(|user, _| !delivered.contains(user));
    if delivered.len() == users.len() {
        return Outcome::Delivered {
            count: recipients.len(),
        };
    }
    let mut by_reason: BTreeMap<SuppressedReason, Vec<UserKey>> = BTreeMap::new();
    for (user, reason) in &suppressed {
        by_reason.entry(*reason).or_default().push(*user);
    }
    let by_reason = by_reason.into_iter();
    Outcome::Mixed {
        dead: Recipients::from_sorted(dead),
        delivered: Recipients::from_sorted(delivered),
        suppressed: Recipients::from_sorted(suppressed.into_keys()),
        expired: Recipients::default(),
        details: OutcomeDetails {
            suppressed: by_reason
                .map(|(reason, users)| (reason, Recipients::from_sorted(users)))
                .collect(),
            ..OutcomeDetails::default()
        },
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

    fn reached(ranges: impl IntoIterator<Item = Range<usize>>) -> Vec<(Range<usize>, Suppressed)> {
        ranges.into_iter().map(|range| (range, Vec::new())).collect()
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
            partial_outcome(&all, None, reached([0..2, 3..5]), [2]),
            mixed([11, 12, 14, 15], [13])
        );
        // An earlier attempt reached recipient 13; recipient 11 was dead.
        let before = mixed([13], [11]);
        assert_eq!(
            partial_outcome(&all, Some(&before), reached([0..2, 4..5]), [2, 3]),
            mixed([11, 12, 13, 15], [14])
        );
        assert_eq!(
            partial_outcome(&all, Some(&before), reached([0..2, 3..5]), [2]),
            Outcome::Delivered { count: 5 }
        );
    }

    #[test]
    fn a_recipient_not_attempted_is_pending() {
        let outcome = partial_outcome(&users(11..=15), None, reached(std::iter::once(0..2)), []);
        assert_eq!(outcome, mixed([11, 12], []));
    }

    #[test]
    fn a_delivered_chunk_stays_delivered() {
        let before = Outcome::Delivered { count: 2 };
        let outcome = partial_outcome(&users([1, 2]), Some(&before), Vec::new(), [0, 1]);
        assert_eq!(outcome, before);
    }

    #[test]
    fn suppressed_recipients_keep_their_reason_until_they_are_reached() {
        use SuppressedReason::{Drowning, Inactive};
        let all = users(11..=16);
        let done = vec![
            (0..3, vec![(Inactive, users([11])), (Drowning, users([13]))]),
            (3..5, vec![(Inactive, users([15]))]),
        ];
        let first = partial_outcome(&all, None, done, [5]);
        let Outcome::Mixed {
            delivered,
            suppressed,
            dead,
            details,
            ..
        } = &first
        else {
            panic!("{first:?}")
        };
        assert_eq!((delivered, dead), (&users([12, 14]), &users([16])));
        assert_eq!(suppressed, &users([11, 13, 15]));
        assert_eq!(
            details.suppressed,
            [(Inactive, users([11, 15])), (Drowning, users([13]))]
        );
        assert_eq!(first.counts().suppressed, 3);

        // 11 has become active, 12 inactive after it got the post; 13 was not tried again, 15 failed.
        let done = vec![(0..2, vec![(Inactive, users([12]))])];
        let second = partial_outcome(&all, Some(&first), done, [4]);
        let Outcome::Mixed {
            delivered,
            suppressed,
            dead,
            details,
            ..
        } = &second
        else {
            panic!("{second:?}")
        };
        assert_eq!((delivered, dead), (&users([11, 12, 14]), &users([15])));
        assert_eq!(suppressed, &users([13]));
        assert_eq!(details.suppressed, [(Drowning, users([13]))]);
    }

    #[test]
    fn only_recipients_that_got_the_post_are_left() {
        let all = users(11..=14);
        assert_eq!(without_suppressed(&all, &Vec::new()), all);
        let suppressed = vec![
            (SuppressedReason::Inactive, users([11, 14])),
            (SuppressedReason::Drowning, users([12])),
        ];
        assert_eq!(without_suppressed(&all, &suppressed), users([13]));
    }
}
