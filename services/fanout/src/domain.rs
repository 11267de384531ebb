//! From followers to chunks: pure decisions.

use herald_model::{
    Channel, FollowVersion, Lane, PostId, Recipients, RecipientsBuilder, UserKey, time::Timestamp,
};
use herald_store::ChunkPlan;

/// A post, or the rest of one, to be expanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) post: PostId,
    pub(crate) author: UserKey,
    pub(crate) version: FollowVersion,
    pub(crate) after: Option<UserKey>,
    pub(crate) index: u32,
    pub(crate) lane: Lane,
    pub(crate) accepted_at: Timestamp,
    pub(crate) push_ttl_seconds: u32,
}

impl Slice {
    /// After this moment no push is sent.
    pub(crate) fn push_expires_at(&self) -> Timestamp {
        self.accepted_at
            .plus(std::time::Duration::from_secs(self.push_ttl_seconds.into()))
    }

    /// What comes after this slice when it ends at a follower.
    pub(crate) fn next(&self, last: UserKey) -> Self {
        Self {
            after: Some(last),
            index: self.index + 1,
            ..*self
        }
    }
}

/// The chunks of one page of followers: all of them for the timeline, those with the bell for the push.
pub(crate) fn chunks(followers: Recipients, notify: &Recipients, push_chunk_max: u32) -> Vec<ChunkPlan> {
    let mut chunks = Vec::with_capacity(2);
    if !followers.is_empty() {
        chunks.push(ChunkPlan {
            channel: Channel::Timeline,
            recipients: followers,
        });
    }
    if notify.len() <= push_chunk_max {
        if !notify.is_empty() {
            chunks.push(ChunkPlan {
                channel: Channel::Push,
                recipients: notify.clone(),
            });
        }
        return chunks;
    }
    let mut builder = RecipientsBuilder::default();
    for key in notify {
        builder.push(key);
        if builder.len() == push_chunk_max {
            chunks.push(ChunkPlan {
                channel: Channel::Push,
                recipients: builder.finish(),
            });
        }
    }
    if !builder.is_empty() {
        chunks.push(ChunkPlan {
            channel: Channel::Push,
            recipients: builder.finish(),
        });
    }
    chunks
}

/// Whether to hold a lane back, given whether it is held back now: stops at the limit, goes on at half of it.
pub(crate) fn hold(held: bool, pending: u64, limit: u64) -> bool {
    if held {
        pending > limit / 2
    } else {
        pending >= limit
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_follower_is_in_one_chunk_of_each_channel_meant_for_them(
            keys in prop::collection::btree_map(1_u32..100_000, any::<bool>(), 0..500),
            push_chunk_max in 1_u32..100,
        ) {
            let followers = Recipients::from_sorted(keys.keys().copied().map(UserKey));
            let belled: Vec<_> = keys.iter().filter(|(_, bell)| **bell).map(|(k, _)| UserKey(*k)).collect();
            let notify = Recipients::from_sorted(belled.iter().copied());
            let made = chunks(followers.clone(), &notify, push_chunk_max);
            let of = |channel| -> Vec<UserKey> {
                made.iter().filter(|c| c.channel == channel).flat_map(|c| c.recipients.iter()).collect()
            };
            prop_assert_eq!(of(Channel::Timeline), followers.iter().collect::<Vec<_>>());
            prop_assert_eq!(of(Channel::Push), belled);
            for chunk in &made {
                prop_assert!(!chunk.recipients.is_empty());
                prop_assert!(chunk.channel == Channel::Timeline || chunk.recipients.len() <= push_chunk_max);
            }
        }
    }

    #[test]
    fn a_held_lane_goes_on_at_half_the_limit() {
        assert!(!hold(false, 99, 100));
        assert!(hold(false, 100, 100));
        assert!(hold(true, 51, 100));
        assert!(!hold(true, 50, 100));
    }
}
