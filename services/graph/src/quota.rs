//! The quota of follows of a user: soft and cheap.
//!
//! The follows of a user are counted once a minute, and those that this process adds are added to the count. When that
//! count has reached the quota, the store is read again. What other processes add is seen with the next reading,
//! so together they may let a few more follows pass.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use herald_model::UserKey;
use herald_rpc::status;
use herald_store::{FollowAction, FollowChange, FollowEffect, Follows, Result};
use moka::sync::Cache;
use tonic::Status;

/// Maximum number of users whose follows are counted, some 10 MB.
const USERS_MAX: u64 = 100_000;
/// Time for which a count is used.
const KEEP: Duration = Duration::from_mins(1);

/// Limits the follows of each user. Clones share the counts.
#[derive(Clone)]
pub(crate) struct FollowQuota(Option<Arc<Inner>>);

struct Inner {
    following_max: usize,
    follows: Arc<dyn Follows>,
    /// An upper bound of the follows of a user, without those that other processes have added since the reading.
    counts: Cache<UserKey, Arc<AtomicUsize>>,
}

/// Places in the quotas of users, until the follows are applied or dropped.
#[derive(Default)]
pub(crate) struct Reserved(BTreeMap<UserKey, (Arc<AtomicUsize>, usize)>);

impl Drop for Reserved {
    fn drop(&mut self) {
        for (count, places) in self.0.values() {
            count.fetch_sub(*places, Ordering::Relaxed);
        }
    }
}

impl FollowQuota {
    /// At most `following_max` follows of a user; 0: no quota.
    pub(crate) fn new(following_max: usize, follows: Arc<dyn Follows>) -> Self {
        Self((following_max > 0).then(|| {
            let counts = Cache::builder().max_capacity(USERS_MAX).time_to_live(KEEP);
            Arc::new(Inner {
                following_max,
                follows,
                counts: counts.build(),
            })
        }))
    }

    /// Takes places for those of the changes that are new follows. Returns the indices of the changes that have none,
    /// because their follower follows as many authors as the quota allows. A follow that exists is never among them.
    ///
    /// # Errors
    /// The store can't be read.
    pub(crate) async fn reserve(&self, changes: &[FollowChange]) -> Result<(Reserved, BTreeSet<usize>)> {
        let (mut reserved, mut refused) = (Reserved::default(), BTreeSet::new());
        let Some(inner) = &self.0 else {
            return Ok((reserved, refused));
        };
        let mut by_follower: BTreeMap<UserKey, Vec<usize>> = BTreeMap::new();
        for (index, change) in changes.iter().enumerate() {
            if matches!(change.action, FollowAction::Follow { .. }) {
                by_follower.entry(change.follower).or_default().push(index);
            }
        }
        for (follower, indices) in by_follower {
            let counted = inner.counts.get(&follower);
            let room = counted.and_then(|count| inner.take(&count, indices.len()).then_some(count));
            let (count, places) = match room {
                Some(count) => (count, indices.len()),
                None => {
                    inner
                        .take_exactly(follower, changes, &indices, &mut refused)
                        .await?
                }
            };
            reserved.0.insert(follower, (count, places));
        }
        Ok((reserved, refused))
    }

    /// Counts what changes have done; `reserved` are the places of the new follows among them.
    pub(crate) fn applied(&self, changes: &[FollowChange], effects: &[FollowEffect], mut reserved: Reserved) {
        let Some(inner) = &self.0 else { return };
        let mut unfollowed: BTreeMap<UserKey, usize> = BTreeMap::new();
        for (change, _) in changes.iter().zip(effects).filter(|(_, effect)| effect.changed) {
            match change.action {
                // A change of the notify setting counts too, until the next reading: a count is an upper bound.
                FollowAction::Follow { .. } => {
                    if let Some((_, places)) = reserved.0.get_mut(&change.follower) {
                        *places = places.saturating_sub(1);
                    }
                }
                FollowAction::Unfollow => *unfollowed.entry(change.follower).or_default() += 1,
            }
        }
        for (follower, fewer) in unfollowed {
            if let Some(count) = inner.counts.get(&follower) {
                let _ = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                    Some(count.saturating_sub(fewer))
                });
            }
        }
    }
}

impl Inner {
    /// Takes places if the count leaves room for all of them.
    fn take(&self, count: &AtomicUsize, places: usize) -> bool {
        let more = |count: usize| {
            count
                .checked_add(places)
                .filter(|count| *count <= self.following_max)
        };
        count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .is_ok()
    }

    /// Reads the follows of a user, and takes places for as many new ones as there is room for. Returns the count and
    /// the number of places.
    async fn take_exactly(
        &self,
        follower: UserKey,
        changes: &[FollowChange],
        indices: &[usize],
        refused: &mut BTreeSet<usize>,
    ) -> Result<(Arc<AtomicUsize>, usize)> {
        let follows = self
            .follows
            .following(follower, None, self.following_max + 1)
            .await?;
        let count = follows.len();
        let is_complete = count <= self.following_max;
        let mut known: BTreeSet<UserKey> = follows.into_iter().map(|follow| follow.author).collect();
        let mut places = 0;
        for index in indices {
            let author = changes[*index].author;
            if known.contains(&author) {
                continue;
            }
            if count + places < self.following_max {
                places += 1;
                known.insert(author);
            } else if !is_complete && self.is_following(follower, author).await? {
                known.insert(author);
            } else {
                refused.insert(*index);
            }
        }
        let counted = Arc::new(AtomicUsize::new(count + places));
        self.counts.insert(follower, counted.clone());
        Ok((counted, places))
    }

    async fn is_following(&self, follower: UserKey, author: UserKey) -> Result<bool> {
        // Reads the first followed author from this one on. Keys start at 1.
        let after = UserKey(author.0.saturating_sub(1));
        let next = self.follows.following(follower, Some(after), 1).await?;
        Ok(next.first().is_some_and(|follow| follow.author == author))
    }
}

/// RESOURCE_EXHAUSTED: the follower follows as many authors as the quota allows.
pub(crate) fn exceeded(field: &str) -> Status {
    let message = "this user follows as many authors as graph.following_max allows: unfollow one first";
    status::quota_exceeded(field, message, None)
}

#[cfg(test)]
mod tests {
    use herald_store::embedded::{self, Embedded};
    use tempfile::TempDir;

    use super::*;

    const USER: UserKey = UserKey(7);

    fn store() -> (TempDir, Arc<dyn Follows>) {
        let dir = tempfile::tempdir().unwrap();
        let config = embedded::Config {
            data_dir: dir.path().into(),
            ..embedded::Config::default()
        };
        let follows = Embedded::open(&config).unwrap().stores().follows;
        (dir, follows)
    }

    fn change(author: u32, action: FollowAction) -> FollowChange {
        FollowChange {
            follower: USER,
            author: UserKey(author),
            action,
        }
    }

    fn follow(authors: impl IntoIterator<Item = u32>) -> Vec<FollowChange> {
        let action = FollowAction::Follow { notify: None };
        authors.into_iter().map(|author| change(author, action)).collect()
    }

    /// Applies the changes that have places; returns the indices of the others.
    async fn apply(quota: &FollowQuota, follows: &dyn Follows, changes: &[FollowChange]) -> Vec<usize> {
        let (reserved, refused) = quota.reserve(changes).await.unwrap();
        let mut at = 0..;
        let left: Vec<_> = changes
            .iter()
            .filter(|_| at.next().is_some_and(|at| !refused.contains(&at)))
            .copied()
            .collect();
        let effects = follows.apply(&left).await.unwrap();
        quota.applied(&left, &effects, reserved);
        refused.into_iter().collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn new_follows_beyond_the_quota_are_refused_and_existing_ones_are_not() {
        let (_dir, follows) = store();
        let quota = FollowQuota::new(5, follows.clone());
        let apply = async |changes: Vec<FollowChange>| apply(&quota, &*follows, &changes).await;
        assert_eq!(apply(follow([1, 2, 3])).await, [0; 0]);
        assert_eq!(apply(follow([2, 3, 4, 4, 5, 6, 1, 6])).await, [5, 7]);
        for _ in 0..3 {
            assert_eq!(apply(follow([1, 2, 3, 4, 5])).await, [0; 0]);
            assert_eq!(apply(follow([9])).await, [0]);
        }
        assert_eq!(apply(vec![change(3, FollowAction::Unfollow)]).await, [0; 0]);
        assert_eq!(apply(follow([8, 9])).await, [1]);
        assert_eq!(follows.following(USER, None, 100).await.unwrap().len(), 5);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn places_of_follows_that_were_not_applied_are_free_again() {
        let (_dir, follows) = store();
        let quota = FollowQuota::new(3, follows.clone());
        assert_eq!(apply(&quota, &*follows, &follow([1])).await, [0; 0]);
        for _ in 0..10 {
            let (reserved, refused) = quota.reserve(&follow([2, 3])).await.unwrap();
            assert!(refused.is_empty());
            drop(reserved);
        }
        assert_eq!(apply(&quota, &*follows, &follow([4, 5])).await, [0; 0]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_user_with_more_follows_than_a_lowered_quota_keeps_all_of_them() {
        let (_dir, follows) = store();
        follows.apply(&follow(1..=9)).await.unwrap();
        let quota = FollowQuota::new(3, follows.clone());
        assert_eq!(apply(&quota, &*follows, &follow(1..=10)).await, [9]);
        assert_eq!(follows.following(USER, None, 100).await.unwrap().len(), 9);
    }
}
