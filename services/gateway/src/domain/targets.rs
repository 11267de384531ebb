//! Which of the watched users are among a chunk's recipients.

use std::collections::BTreeMap;

use herald_model::{Recipients, UserKey};

/// How many watched users a recipient is worth: one look into the map costs about as much as this many steps along it.
const STEPS_PER_LOOKUP: usize = 8;

/// Calls `found` with each watched user who is among the recipients, ascending.
///
/// Both sides are sorted, so they are walked side by side; only when the watched are very many, each recipient is looked
/// up instead.
pub(crate) fn for_each_watched<'w, W>(
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
        fn both_ways_find_the_intersection(
            watched in prop::collection::btree_set(0_u32..500, 0..200),
            recipients in prop::collection::btree_set(0_u32..500, 0..200),
        ) {
            let expected: BTreeSet<u32> = watched.intersection(&recipients).copied().collect();
            let map: BTreeMap<UserKey, u32> = watched.iter().map(|k| (UserKey(*k), *k)).collect();
            let coded = Recipients::from_sorted(recipients.iter().copied().map(UserKey));
            let mut found = Vec::new();
            for_each_watched(&map, &coded, |key, watcher| {
                assert_eq!(key.0, *watcher);
                found.push(key.0);
            });
            prop_assert!(found.iter().copied().eq(expected.iter().copied()));
        }
    }
}
