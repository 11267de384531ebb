//! What the dead letters explain.

use std::collections::HashSet;

use herald_model::PostId;
use herald_store::{DeadLetterFilter, DeadLetterState, DeadLetters, MessageRef, Order};

use crate::{Result, carried::ChunkKey, pace::Pace};

/// Dead letters read at a time.
const PAGE: usize = 1_024;

/// What the dead letters of the store are about. A resolved dead letter explains nothing: what it was about is delivered.
#[derive(Debug, Default)]
pub(crate) struct Explained {
    chunks: HashSet<ChunkKey>,
    /// With what the consumer does.
    posts: HashSet<(PostId, String)>,
    origins: HashSet<MessageRef>,
    dead_letters: HashSet<u64>,
}

impl Explained {
    pub(crate) async fn read(dead_letters: &dyn DeadLetters, pace: &mut Pace) -> Result<Self> {
        let mut explained = Self::default();
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
                            explained.chunks.insert((post, channel, chunk));
                        }
                        _ => {
                            explained.posts.insert((post, dead_letter.kind));
                        }
                    }
                }
                explained.dead_letters.insert(dead_letter.id.0);
                explained.origins.insert(dead_letter.origin);
            }
            if page.next.is_none() {
                return Ok(explained);
            }
            after = page.next;
            pace.rest().await;
        }
    }

    /// Whether a dead letter says why recipients of the chunk are dead.
    pub(crate) fn chunk(&self, key: &ChunkKey) -> bool {
        self.chunks.contains(key)
    }

    /// Whether a dead letter says why one of these consumers has not done its part for a post.
    pub(crate) fn post(&self, post: PostId, kinds: &[&str]) -> bool {
        kinds
            .iter()
            .any(|kind| self.posts.contains(&(post, (*kind).to_owned())))
    }

    /// Whether there is this dead letter, whatever became of it.
    pub(crate) fn dead_letter(&self, id: u64) -> bool {
        self.dead_letters.contains(&id)
    }

    /// Whether there is a dead letter about a message, whatever became of it.
    pub(crate) fn origin(&self, origin: &MessageRef) -> bool {
        self.origins.contains(origin)
    }
}
