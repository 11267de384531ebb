//! Reading of complete plans for the auditor.

use std::collections::BTreeMap;

use fjall::Readable;
use herald_model::{Channel, ChunkId, DeliveryState, PostId, Recipients};

use super::{
    Ledger, recipient_states,
    row::{self, RowKind},
};
use crate::{
    ChunkState, PlannedSlice, PostPlan, RecordedOutcome, Result,
    embedded::{database::map_err, timelines::Deliveries},
};

impl Ledger {
    /// Lists posts that have rows, ascending. Each post costs one range read that skips the rest of its rows.
    pub(crate) fn posts_after(&self, after: Option<PostId>, limit: usize) -> Result<Vec<PostId>> {
        let mut posts = Vec::new();
        // Skips the trimmed range: reading tombstones takes as long as reading rows.
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

    /// The recipients on whose timelines a post is, or will be: those of chunks that are delivered or pending, and of
    /// backfills.
    pub(crate) fn timeline_deliveries(&self, post: PostId) -> Result<Deliveries> {
        let plan = self.plan_of(post)?.unwrap_or_default();
        let chunks = plan.chunks.into_iter();
        let planned = chunks
            .filter(|chunk| chunk.channel == Channel::Timeline)
            .map(|chunk| {
                let outcome = chunk.recorded.as_ref().map(|recorded| &recorded.outcome);
                let states = recipient_states(&chunk.recipients, outcome).into_iter();
                let there = states
                    .filter(|(_, state)| matches!(state, DeliveryState::Delivered | DeliveryState::Pending));
                Recipients::from_sorted(there.map(|(user, _)| user))
            });
        Ok(planned.chain(plan.backfilled).collect())
    }

    /// Reads all rows of a post from one snapshot; `None` if there are none.
    pub(super) fn plan_of(&self, post: PostId) -> Result<Option<PostPlan>> {
        let mut plan = PostPlan::default();
        let mut recorded: BTreeMap<(Channel, ChunkId), RecordedOutcome> = BTreeMap::new();
        let mut found = false;
        let snapshot = self.database.snapshot();
        // Outcomes sort before chunks.
        for entry in snapshot.prefix(&self.rows, post.0.to_be_bytes()) {
            let (key, value) = entry.into_inner().map_err(map_err)?;
            found = true;
            match RowKind::of_key(&key)? {
                RowKind::Slice => plan.slices.push(PlannedSlice {
                    index: row::read_slice_key(&key)?,
                    last: row::Slice::decode(&value)?.last,
                    version: row::Slice::decode_pin(&value)?.map(|pin| pin.version),
                }),
                RowKind::Outcome => {
                    recorded.insert(row::read_chunk_key(&key)?, row::decode_outcome(&value)?);
                }
                RowKind::Chunk => {
                    let (channel, chunk) = row::read_chunk_key(&key)?;
                    plan.chunks.push(ChunkState {
                        channel,
                        chunk,
                        recipients: row::decode_chunk(&value)?.1.decode()?,
                        recorded: recorded.remove(&(channel, chunk)),
                    });
                }
                RowKind::Backfill => plan.backfilled.push(row::decode_chunk(&value)?.1.decode()?),
            }
        }
        let unplanned = recorded.into_iter();
        plan.unplanned = unplanned
            .map(|((channel, chunk), recorded)| (channel, chunk, recorded))
            .collect();
        Ok(found.then_some(plan))
    }
}
