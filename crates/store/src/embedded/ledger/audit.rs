//! Reading all that the ledger has, for whoever checks it.

use std::collections::BTreeMap;

use fjall::Readable;
use herald_model::{Channel, ChunkId, PostId};

use super::{
    Ledger,
    row::{self, Kind},
};
use crate::{ChunkState, PlannedSlice, PostPlan, RecordedOutcome, Result, embedded::database::map_err};

impl Ledger {
    /// Posts with rows, each found by one look at where its rows would begin.
    pub(super) fn posts_after(&self, after: Option<PostId>, limit: usize) -> Result<Vec<PostId>> {
        let mut posts = Vec::new();
        // Not over what was removed: that takes as long as what is there.
        let mut from = after
            .map_or(0, |post| post.0.saturating_add(1))
            .max(self.trim_watermark.first().0);
        while posts.len() < limit {
            let Some(entry) = self.rows.range(from.to_be_bytes()..).next() else {
                break;
            };
            let post = row::read_post(&entry.key().map_err(map_err)?)?;
            posts.push(post);
            let Some(next) = post.0.checked_add(1) else { break };
            from = next;
        }
        Ok(posts)
    }

    /// All rows of a post, from one snapshot.
    pub(super) fn plan_of(&self, post: PostId) -> Result<Option<PostPlan>> {
        let mut plan = PostPlan::default();
        let mut recorded: BTreeMap<(Channel, ChunkId), RecordedOutcome> = BTreeMap::new();
        let mut known = false;
        let snapshot = self.database.snapshot();
        // Outcomes come before chunks.
        for entry in snapshot.prefix(&self.rows, post.0.to_be_bytes()) {
            let (key, value) = entry.into_inner().map_err(map_err)?;
            known = true;
            match Kind::of(&key)? {
                Kind::Slice => plan.slices.push(PlannedSlice {
                    index: row::read_slice_key(&key)?,
                    last: row::Slice::decode(&value)?.last,
                }),
                Kind::Outcome => {
                    recorded.insert(row::read_chunk_key(&key)?, row::decode_outcome(&value)?);
                }
                Kind::Chunk => {
                    let (channel, chunk) = row::read_chunk_key(&key)?;
                    plan.chunks.push(ChunkState {
                        channel,
                        chunk,
                        recipients: row::decode_chunk(&value)?.1.decode()?,
                        recorded: recorded.remove(&(channel, chunk)),
                    });
                }
                Kind::Backfill => plan.backfilled.push(row::decode_chunk(&value)?.1.decode()?),
            }
        }
        let unplanned = recorded.into_iter();
        plan.unplanned = unplanned
            .map(|((channel, chunk), recorded)| (channel, chunk, recorded))
            .collect();
        Ok(known.then_some(plan))
    }
}
