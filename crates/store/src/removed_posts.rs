//! Which posts retention has removed, and how old they are at least.
//!
//! Delivery counts can be kept for longer than posts, so their retention asks for the first post since a time at which
//! all posts are removed by now. To answer that, each removal is recorded with the time before which its posts were
//! accepted.

use std::{collections::BTreeMap, time::Duration};

use herald_model::{PostId, time::Timestamp};

/// Minimum time between two removals, by the acceptance of posts: it bounds the number of records.
pub(crate) const STEP_MIN: Duration = Duration::from_hours(1);

/// The removals: all posts below the post of each were accepted before its time.
#[derive(Debug, Clone)]
pub(crate) struct RemovedPosts {
    removals: BTreeMap<Timestamp, PostId>,
    first: PostId,
}

impl Default for RemovedPosts {
    fn default() -> Self {
        Self::new(BTreeMap::new())
    }
}

impl RemovedPosts {
    pub(crate) fn new(removals: BTreeMap<Timestamp, PostId>) -> Self {
        let first = removals.values().copied().max().unwrap_or(PostId(0));
        Self { removals, first }
    }

    /// The first post that is not removed.
    pub(crate) fn first(&self) -> PostId {
        self.first
    }

    /// The time of the last removal, by the acceptance of posts.
    pub(crate) fn last_moment(&self) -> Option<Timestamp> {
        self.removals.last_key_value().map(|(moment, _)| *moment)
    }

    /// The first of the removed posts that may have been accepted at `moment` or later; `None` if all were accepted
    /// before.
    pub(crate) fn first_since(&self, moment: Timestamp) -> Option<PostId> {
        let older = self.removals.range(..=moment).map(|(_, first)| *first).max();
        let older = older.unwrap_or(PostId(0));
        (older < self.first()).then_some(older)
    }

    /// Records the removal of all posts less than `first`, which were accepted before `before`. Forgets the removals
    /// that are not needed any more, because nobody asks for a time before `ages_since`, and returns their times.
    pub(crate) fn hide(&mut self, before: Timestamp, first: PostId, ages_since: Timestamp) -> Vec<Timestamp> {
        self.removals.insert(before, first);
        self.first = self.first.max(first);
        // The last removal before that time answers for it.
        let needed = self
            .removals
            .range(..=ages_since)
            .max_by_key(|(_, first)| **first);
        let Some((needed, _)) = needed.map(|(moment, first)| (*moment, *first)) else {
            return Vec::new();
        };
        let unneeded: Vec<_> = self.removals.range(..needed).map(|(moment, _)| *moment).collect();
        for moment in &unneeded {
            self.removals.remove(moment);
        }
        unneeded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removed_posts_have_an_age() {
        let mut removed = RemovedPosts::default();
        assert_eq!((removed.first(), removed.last_moment()), (PostId(0), None));
        assert_eq!(removed.first_since(Timestamp(5)), None);
        for (moment, first) in [(10, 100), (20, 200), (30, 300)] {
            assert_eq!(
                removed.hide(Timestamp(moment), PostId(first), Timestamp(0)),
                [],
                "{moment}"
            );
        }
        assert_eq!(removed.first(), PostId(300));
        assert_eq!(removed.last_moment(), Some(Timestamp(30)));
        for (moment, first) in [
            (9, Some(0)),
            (10, Some(100)),
            (29, Some(200)),
            (30, None),
            (99, None),
        ] {
            assert_eq!(
                removed.first_since(Timestamp(moment)),
                first.map(PostId),
                "since {moment}"
            );
        }
        // Nobody asks for a time before 25 any more.
        let unneeded = removed.hide(Timestamp(40), PostId(400), Timestamp(25));
        assert_eq!(unneeded, [Timestamp(10)]);
        assert_eq!(removed.first_since(Timestamp(25)), Some(PostId(200)));
        assert_eq!(removed.first_since(Timestamp(40)), None);
    }

    #[test]
    fn a_shorter_retention_after_a_longer_one_forgets_no_removal() {
        let mut removed = RemovedPosts::default();
        removed.hide(Timestamp(30), PostId(300), Timestamp(0));
        // A clock was behind: an earlier time removes more.
        removed.hide(Timestamp(20), PostId(350), Timestamp(0));
        assert_eq!(removed.first(), PostId(350));
        assert_eq!(removed.first_since(Timestamp(20)), None);
    }
}
