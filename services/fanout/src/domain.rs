//! Pure decisions: how followers become chunks.

use herald_model::{
    Channel, FollowVersion, Lane, PostId, Recipients, RecipientsBuilder, UserKey, time::Timestamp,
};
use herald_store::ChunkPlan;

/// The followers of a post from `after` on, up to the slice limit. The first slice of a post has index 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) post: PostId,
    pub(crate) author: UserKey,
    /// Follow version at which the followers are read; `None` for the first slice, which reads the newest one.
    pub(crate) version: Option<FollowVersion>,
    pub(crate) after: Option<UserKey>,
    pub(crate) index: u32,
    pub(crate) lane: Lane,
    pub(crate) accepted_at: Timestamp,
    pub(crate) push_ttl_seconds: u32,
}

impl Slice {
    /// When the pushes of the post expire.
    pub(crate) fn push_expires_at(&self) -> Timestamp {
        self.accepted_at
            .plus(std::time::Duration::from_secs(self.push_ttl_seconds.into()))
    }

    /// The slice that starts after the follower `last`, at the version of this slice.
    pub(crate) fn next(&self, version: FollowVersion, last: UserKey) -> Self {
        Self {
            version: Some(version),
            after: Some(last),
            index: self.index + 1,
            ..*self
        }
    }
}

/// Splits one page of followers into chunks: a timeline chunk with all followers, and push chunks with the followers in
/// `notify`.
pub(crate) fn split_into_chunks(
    followers: Recipients,
    notify: &Recipients,
    push_chunk_max: u32,
) -> Vec<ChunkPlan> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_follower_is_in_one_timeline_chunk_and_if_notified_in_one_push_chunk(
            keys in prop::collection::btree_map(1_u32..100_000, any::<bool>(), 0..500),
            push_chunk_max in 1_u32..100,
        ) {
            let followers = Recipients::from_sorted(keys.keys().copied().map(UserKey));
            let notified: Vec<_> = keys.iter().filter(|(_, notify)| **notify).map(|(k, _)| UserKey(*k)).collect();
            let notify = Recipients::from_sorted(notified.iter().copied());
            let chunks = split_into_chunks(followers.clone(), &notify, push_chunk_max);
            let recipients_of = |channel| -> Vec<UserKey> {
                chunks.iter().filter(|c| c.channel == channel).flat_map(|c| c.recipients.iter()).collect()
            };
            prop_assert_eq!(recipients_of(Channel::Timeline), followers.iter().collect::<Vec<_>>());
            prop_assert_eq!(recipients_of(Channel::Push), notified);
            for chunk in &chunks {
                prop_assert!(!chunk.recipients.is_empty());
                prop_assert!(chunk.channel == Channel::Timeline || chunk.recipients.len() <= push_chunk_max);
            }
        }
    }
}
