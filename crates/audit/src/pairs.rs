//! Pairs of recipient and post, packed for sorting.

use herald_model::UserKey;

/// A recipient, the index of a post in the window, and whether the ledger has the delivery as delivered. Sorts by
/// recipient, then by post.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pair(u64);

impl Pair {
    /// Number of post indices that fit into a pair.
    pub(crate) const POSTS_MAX: usize = 1 << 31;

    pub(crate) fn new(user: UserKey, post_index: u32, delivered: bool) -> Self {
        Self(u64::from(user.0) << 32 | u64::from(post_index) << 1 | u64::from(delivered))
    }

    pub(crate) fn user(self) -> UserKey {
        UserKey((self.0 >> 32) as u32)
    }

    pub(crate) fn post_index(self) -> usize {
        (self.0 as u32 >> 1) as usize
    }

    pub(crate) fn is_delivered(self) -> bool {
        self.0 & 1 == 1
    }
}

/// The differences between one recipient's pairs and the posts on the timeline, as indices in the window.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Delivered according to the ledger, but not on the timeline.
    pub(crate) missing: Vec<usize>,
    /// On the timeline, but not planned.
    pub(crate) extra: Vec<usize>,
}

/// Appends the differences between one recipient's pairs and the post indices on the timeline. Both must be ascending.
pub(crate) fn compare(expected: &[Pair], found: &[usize], difference: &mut Difference) {
    let mut expected = expected.iter().copied().peekable();
    for post_index in found {
        while let Some(pair) = expected.next_if(|pair| pair.post_index() < *post_index) {
            if pair.is_delivered() {
                difference.missing.push(pair.post_index());
            }
        }
        let mut planned = false;
        // A post repeats if a recipient is in two chunks.
        while expected
            .next_if(|pair| pair.post_index() == *post_index)
            .is_some()
        {
            planned = true;
        }
        if !planned {
            difference.extra.push(*post_index);
        }
    }
    difference
        .missing
        .extend(expected.filter(|pair| pair.is_delivered()).map(Pair::post_index));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_decoded_pair_equals_the_encoded_one(
            user in any::<u32>(),
            post_index in 0..1_u32 << 31,
            delivered in any::<bool>(),
        ) {
            let pair = Pair::new(UserKey(user), post_index, delivered);
            let decoded = (pair.user(), pair.post_index(), pair.is_delivered());
            prop_assert_eq!(decoded, (UserKey(user), post_index as usize, delivered));
        }

        #[test]
        fn compare_reports_exactly_the_differences(
            planned in prop::collection::btree_map(0_u32..40, any::<bool>(), 0..30),
            found in prop::collection::btree_set(0_usize..40, 0..30),
        ) {
            let pairs: Vec<_> = planned.iter().map(|(post_index, d)| Pair::new(UserKey(7), *post_index, *d)).collect();
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
