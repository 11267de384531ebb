//! Finds the watched users among the recipients of a chunk.

use std::collections::BTreeMap;

use herald_model::{Recipients, UserKey};

/// Estimated cost of one map lookup, in steps of an iterator over the map.
const STEPS_PER_LOOKUP: usize = 8;

/// Calls `found` for each watched user among the recipients, in ascending order.
///
/// Both sides are sorted, so they are merged. With many more watched users than recipients, each recipient is looked up
/// instead.
pub(crate) fn for_each_watched_recipient<'w, W>(
    watched: &'w BTreeMap<UserKey, W>,
    recipients: &Recipients,
    mut found: impl FnMut(UserKey, &'w W),
) {
    if watched.len() > recipients.len() as usize * STEPS_PER_LOOKUP {
        for key in recipients {
            if let Some(watcher) = watched.get(&key) {
                found(key, watcher);
            }
        }
        return;
    }
    let mut watched = watched.iter();
    let Some((mut key, mut watcher)) = watched.next() else {
        return;
    };
    for recipient in recipients {
        while *key < recipient {
            match watched.next() {
                Some(next) => (key, watcher) = next,
                None => return,
            }
        }
        if *key == recipient {
            found(recipient, watcher);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn merge_and_lookup_find_the_intersection(
            watched in prop::collection::btree_set(0_u32..500, 0..200),
            recipients in prop::collection::btree_set(0_u32..500, 0..200),
        ) {
            let expected: BTreeSet<u32> = watched.intersection(&recipients).copied().collect();
            let map: BTreeMap<UserKey, u32> = watched.iter().map(|k| (UserKey(*k), *k)).collect();
            let encoded = Recipients::from_sorted(recipients.iter().copied().map(UserKey));
            let mut found = Vec::new();
            for_each_watched_recipient(&map, &encoded, |key, watcher| {
                assert_eq!(key.0, *watcher);
                found.push(key.0);
            });
            prop_assert!(found.iter().copied().eq(expected.iter().copied()));
        }
    }
}
