//! What the dead letters explain.

use std::collections::HashSet;

use herald_model::PostId;
use herald_store::{DeadLetters, LetterFilter, LetterState, Order, Origin};

use crate::{Result, carried::ChunkKey, pace::Pace};

/// Letters read at a time.
const PAGE: usize = 1_024;

/// What the letters of the store are about. A resolved letter explains nothing: what it was about is delivered.
#[derive(Debug, Default)]
pub(crate) struct Explained {
    chunks: HashSet<ChunkKey>,
    /// With what the consumer does.
    posts: HashSet<(PostId, String)>,
    origins: HashSet<Origin>,
    letters: HashSet<u64>,
}

impl Explained {
    pub(crate) async fn read(letters: &dyn DeadLetters, pace: &mut Pace) -> Result<Self> {
        let mut explained = Self::default();
        let mut after = None;
        loop {
            let page = letters
                .scan(&LetterFilter::default(), Order::OldestFirst, after, PAGE)
                .await?;
            for letter in page.letters {
                if letter.state != LetterState::Resolved
                    && let Some(post) = letter.post
                {
                    match (letter.channel, letter.chunk) {
                        (Some(channel), Some(chunk)) => {
                            explained.chunks.insert((post, channel, chunk));
                        }
                        _ => {
                            explained.posts.insert((post, letter.kind));
                        }
                    }
                }
                explained.letters.insert(letter.id.0);
                explained.origins.insert(letter.origin);
            }
            if page.next.is_none() {
                return Ok(explained);
            }
            after = page.next;
            pace.rest().await;
        }
    }

    /// Whether a letter says why recipients of the chunk are dead.
    pub(crate) fn chunk(&self, key: &ChunkKey) -> bool {
        self.chunks.contains(key)
    }

    /// Whether a letter says why one of these consumers has not done its part for a post.
    pub(crate) fn post(&self, post: PostId, kinds: &[&str]) -> bool {
        kinds
            .iter()
            .any(|kind| self.posts.contains(&(post, (*kind).to_owned())))
    }

    /// Whether there is this letter, whatever became of it.
    pub(crate) fn letter(&self, id: u64) -> bool {
        self.letters.contains(&id)
    }

    /// Whether there is a letter about a message, whatever became of it.
    pub(crate) fn origin(&self, origin: &Origin) -> bool {
        self.origins.contains(origin)
    }
}
