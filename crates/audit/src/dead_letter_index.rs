//! An index of the dead letters by chunk, post and original message.

use std::collections::HashSet;

use herald_model::PostId;
use herald_store::{DeadLetterFilter, DeadLetterState, DeadLetters, MessageRef, Order};

use crate::{Result, in_flight::ChunkKey, throttle::Throttle};

/// Dead letters read at a time.
const PAGE: usize = 1_024;

/// The dead letters of the store. Resolved dead letters explain no chunk or post, because their messages were
/// processed.
#[derive(Debug, Default)]
pub(crate) struct DeadLetterIndex {
    chunks: HashSet<ChunkKey>,
    /// Posts with the kind of the consumer.
    posts: HashSet<(PostId, String)>,
    origins: HashSet<MessageRef>,
    ids: HashSet<u64>,
}

impl DeadLetterIndex {
    /// Reads all dead letters.
    pub(crate) async fn read(dead_letters: &dyn DeadLetters, throttle: &mut Throttle) -> Result<Self> {
        let mut index = Self::default();
        let mut after = None;
        loop {
            let page = dead_letters
                .scan(&DeadLetterFilter::default(), Order::OldestFirst, after, PAGE)
                .await?;
            for dead_letter in page.dead_letters {
                if dead_letter.state != DeadLetterState::Resolved
                    && let Some(post) = dead_letter.post
                {
                    match (dead_letter.channel, dead_letter.chunk) {
                        (Some(channel), Some(chunk)) => {
                            index.chunks.insert((post, channel, chunk));
                        }
                        _ => {
                            index.posts.insert((post, dead_letter.kind));
                        }
                    }
                }
                index.ids.insert(dead_letter.id.0);
                index.origins.insert(dead_letter.origin);
            }
            if page.next.is_none() {
                return Ok(index);
            }
            after = page.next;
            throttle.pause().await;
        }
    }

    /// Whether an unresolved dead letter is about the chunk.
    pub(crate) fn explains_chunk(&self, key: &ChunkKey) -> bool {
        self.chunks.contains(key)
    }

    /// Whether an unresolved dead letter of a consumer of one of these kinds is about the post.
    pub(crate) fn explains_post(&self, post: PostId, kinds: &[&str]) -> bool {
        kinds
            .iter()
            .any(|kind| self.posts.contains(&(post, (*kind).to_owned())))
    }

    /// Whether a dead letter exists, in any state.
    pub(crate) fn contains(&self, id: u64) -> bool {
        self.ids.contains(&id)
    }

    /// Whether a dead letter for this message exists, in any state.
    pub(crate) fn has_origin(&self, origin: &MessageRef) -> bool {
        self.origins.contains(origin)
    }
}
