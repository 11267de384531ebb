//! Pairs of follower and post, packed for sorting.

use herald_model::UserKey;

/// A follower, a post by its place in the window, and whether the ledger says delivered. Sorts by follower, then by post.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pair(u64);

impl Pair {
    /// Places that fit.
    pub(crate) const PLACES_MAX: usize = 1 << 31;

    pub(crate) fn new(user: UserKey, place: u32, delivered: bool) -> Self {
        Self(u64::from(user.0) << 32 | u64::from(place) << 1 | u64::from(delivered))
    }

    pub(crate) fn user(self) -> UserKey {
        UserKey((self.0 >> 32) as u32)
    }

    pub(crate) fn place(self) -> usize {
        (self.0 as u32 >> 1) as usize
    }

    pub(crate) fn is_delivered(self) -> bool {
        self.0 & 1 == 1
    }
}

/// What is different between the pairs of one follower and the posts on their timeline.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Delivered by the ledger, not on the timeline: places.
    pub(crate) missing: Vec<usize>,
    /// On the timeline, not planned: places.
    pub(crate) extra: Vec<usize>,
}

/// Compares one follower's pairs with the places that are on their timeline; both ascend.
pub(crate) fn compare(wanted: &[Pair], found: &[usize], difference: &mut Difference) {
    let mut wanted = wanted.iter().copied().peekable();
    for place in found {
        while let Some(pair) = wanted.next_if(|pair| pair.place() < *place) {
            if pair.is_delivered() {
                difference.missing.push(pair.place());
            }
        }
        let mut planned = false;
        // A post stands twice when a chunk was planned twice, which the ledger's own check reports.
        while wanted.next_if(|pair| pair.place() == *place).is_some() {
            planned = true;
        }
        if !planned {
            difference.extra.push(*place);
        }
    }
    difference
        .missing
        .extend(wanted.filter(|pair| pair.is_delivered()).map(Pair::place));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_pair_reads_back(user in any::<u32>(), place in 0..1_u32 << 31, delivered in any::<bool>()) {
            let pair = Pair::new(UserKey(user), place, delivered);
            prop_assert_eq!((pair.user(), pair.place(), pair.is_delivered()), (UserKey(user), place as usize, delivered));
        }

        #[test]
        fn each_difference_is_named_and_nothing_else(
            planned in prop::collection::btree_map(0_u32..40, any::<bool>(), 0..30),
            found in prop::collection::btree_set(0_usize..40, 0..30),
        ) {
            let pairs: Vec<_> = planned.iter().map(|(place, d)| Pair::new(UserKey(7), *place, *d)).collect();
            let mut difference = Difference::default();
            compare(&pairs, &found.iter().copied().collect::<Vec<_>>(), &mut difference);
            let planned: BTreeMap<usize, bool> = planned.into_iter().map(|(p, d)| (p as usize, d)).collect();
            let missing: Vec<_> =
                planned.iter().filter(|(p, d)| **d && !found.contains(p)).map(|(p, _)| *p).collect();
            let extra: Vec<_> = found.iter().copied().filter(|p| !planned.contains_key(p)).collect();
            prop_assert_eq!(difference, Difference { missing, extra });
        }
    }
}
