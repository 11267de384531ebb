//! Users who follow so many authors that their timelines would churn: they get a part of the posts.
//!
//! Which part is decided by a hash of user and post, so that every worker, retry and rebuild decides alike. The expected
//! number of kept posts is that of a user who follows `following_max` authors.

use std::collections::HashMap;

use herald_model::UserKey;

/// The users who drown, with the number of authors whom they follow.
#[derive(Debug, Clone, Default)]
pub(super) struct Drowning {
    following: HashMap<UserKey, u32>,
    following_max: u32,
}

impl Drowning {
    pub(super) fn new(following: HashMap<UserKey, u32>, following_max: u32) -> Self {
        Self {
            following,
            following_max,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.following.is_empty()
    }

    /// Whether the timeline of a user gets a post.
    pub(super) fn keeps(&self, user: UserKey, post: u64) -> bool {
        let Some(following) = self.following.get(&user) else {
            return true;
        };
        keeps(user, post, *following, self.following_max)
    }
}

/// Whether a user who follows `following` authors gets a post: with a probability of `following_max / following`.
pub(super) fn keeps(user: UserKey, post: u64, following: u32, following_max: u32) -> bool {
    if following <= following_max {
        return true;
    }
    let hash = mix(mix(u64::from(user.0)) ^ post);
    u128::from(hash) * u128::from(following) < u128::from(following_max) << 64
}

/// The finalizer of SplitMix64 (Sebastiano Vigna, public domain).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_at_the_maximum_gets_all() {
        assert!((1..1_000).all(|post| keeps(UserKey(1), post, 4_000, 4_000)));
    }

    #[test]
    fn the_kept_part_is_the_same_each_time_and_of_the_expected_size() {
        let drowning = Drowning::new([(UserKey(7), 16_000)].into(), 4_000);
        let kept = |user: u32| {
            (1..=10_000)
                .filter(|post| drowning.keeps(UserKey(user), *post))
                .collect::<Vec<_>>()
        };
        assert_eq!(kept(7), kept(7));
        assert!((2_300..2_700).contains(&kept(7).len()), "{}", kept(7).len());
        assert_eq!(kept(8).len(), 10_000);
    }

    /// Following more authors removes posts and adds none.
    #[test]
    fn a_smaller_part_is_a_subset() {
        for post in 1..5_000 {
            assert!(keeps(UserKey(3), post, 8_000, 4_000) || !keeps(UserKey(3), post, 9_000, 4_000));
        }
    }
}
