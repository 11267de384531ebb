//! A window of posts.

use herald_model::{PostId, Recipients};
use herald_store::{ChunkState, Outcome};

use crate::{confirm::Suspect, pairs::Pair};

/// Posts that are compared with the timelines in one pass.
#[derive(Default)]
pub(crate) struct Window {
    /// Post ids, ascending.
    pub(crate) posts: Vec<PostId>,
    /// Backfilled recipients of each post.
    pub(crate) backfilled: Vec<Vec<Recipients>>,
    /// Planned recipients, unsorted.
    pub(crate) pairs: Vec<Pair>,
    /// Possible findings.
    pub(crate) suspects: Vec<Suspect>,
}

impl Window {
    /// Adds the recipients of a chunk of the post at an index. If the post is not `expected` on timelines, no entry is
    /// missing. Suppressed recipients are neither missing nor extra.
    pub(crate) fn add_pairs(&mut self, chunk: &ChunkState, post_index: u32, expected: bool) {
        let pairs = &mut self.pairs;
        match chunk.recorded.as_ref().map(|recorded| &recorded.outcome) {
            Some(Outcome::Delivered { .. }) => {
                pairs.extend(
                    chunk
                        .recipients
                        .iter()
                        .map(|user| Pair::new(user, post_index, expected)),
                );
            }
            Some(Outcome::Mixed { delivered, .. }) => {
                let mut delivered = delivered.iter().peekable();
                pairs.extend(chunk.recipients.iter().map(|user| {
                    while delivered.next_if(|one| *one < user).is_some() {}
                    Pair::new(
                        user,
                        post_index,
                        expected && delivered.next_if_eq(&user).is_some(),
                    )
                }));
            }
            None => pairs.extend(
                chunk
                    .recipients
                    .iter()
                    .map(|user| Pair::new(user, post_index, false)),
            ),
        }
    }
}
