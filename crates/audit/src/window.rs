//! The posts in hand.

use herald_model::{PostId, Recipients};
use herald_store::{ChunkState, Outcome};

use crate::{confirm::Suspect, pairs::Pair};

/// Posts that are compared with the timelines together.
#[derive(Default)]
pub(crate) struct Window {
    /// Their ids, ascending.
    pub(crate) posts: Vec<PostId>,
    /// Who was backfilled with each.
    pub(crate) backfilled: Vec<Vec<Recipients>>,
    /// Who each was planned for, unsorted.
    pub(crate) pairs: Vec<Pair>,
    /// What looks wrong.
    pub(crate) suspects: Vec<Suspect>,
}

impl Window {
    /// Adds who a chunk of the post at this place is for.
    pub(crate) fn add_pairs(&mut self, chunk: &ChunkState, place: u32, forgotten: bool) {
        let pairs = &mut self.pairs;
        match chunk.recorded.as_ref().map(|recorded| &recorded.outcome) {
            Some(Outcome::Delivered { .. }) => {
                pairs.extend(
                    chunk
                        .recipients
                        .iter()
                        .map(|user| Pair::new(user, place, !forgotten)),
                );
            }
            Some(Outcome::Mixed { delivered, .. }) => {
                let mut delivered = delivered.iter().peekable();
                pairs.extend(chunk.recipients.iter().map(|user| {
                    while delivered.next_if(|one| *one < user).is_some() {}
                    Pair::new(user, place, !forgotten && delivered.next_if_eq(&user).is_some())
                }));
            }
            None => pairs.extend(chunk.recipients.iter().map(|user| Pair::new(user, place, false))),
        }
    }
}
