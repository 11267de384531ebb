//! Plans of slices: written once, read by every retry.

use herald_model::{Channel, ChunkId, PostId, Recipients};

use super::{
    Ledger,
    row::{self, RowKind},
};
use crate::{
    ChunkPlan, Error, ErrorKind, Result, SlicePlan,
    embedded::database::{Committed, map_err},
};

impl Ledger {
    /// Records a plan durably, or returns the recorded one.
    pub(super) async fn plan_once(&self, plan: SlicePlan) -> Result<SlicePlan> {
        let (plan, committed) = self.find_or_insert_plan(plan)?;
        committed.await?;
        Ok(plan)
    }

    /// Two attempts at one slice may run at the same time, with different followers: the lock lets one of them plan.
    fn find_or_insert_plan(&self, plan: SlicePlan) -> Result<(SlicePlan, Committed)> {
        let _lock = self.plan_lock.lock();
        let key = row::slice_key(plan.post, plan.slice);
        let mut batch = self.database.batch();
        if let Some(row) = self.rows.get(key).map_err(map_err)? {
            let recorded = self.recorded_plan(&plan, &row)?;
            // The plan may not be durable yet. An empty batch is durable only after all earlier writes.
            return Ok((recorded, self.database.apply(batch)?));
        }
        let mut slice = row::Slice {
            last: plan.next_after.is_none(),
            ..row::Slice::default()
        };
        let mut chunks = Vec::with_capacity(plan.chunks.len());
        for chunk in &plan.chunks {
            let id = chunk.recipients.chunk_id();
            let key = row::chunk_key(plan.post, RowKind::Chunk, chunk.channel, id);
            batch.insert(&self.rows, key, row::encode_chunk(&chunk.recipients));
            chunks.push((chunk.channel, id));
            *match chunk.channel {
                Channel::Timeline => &mut slice.timeline,
                Channel::Push => &mut slice.push,
            } += u64::from(chunk.recipients.len());
        }
        let pin = row::Pin {
            version: plan.version,
            next_after: plan.next_after,
            chunks,
        };
        batch.insert(&self.rows, key, slice.encode(&pin));
        Ok((plan, self.database.apply(batch)?))
    }

    /// The plan of a slice's row. `proposed` names the slice.
    fn recorded_plan(&self, proposed: &SlicePlan, row: &[u8]) -> Result<SlicePlan> {
        let Some(pin) = row::Slice::decode_pin(row)? else {
            return self.recorded_plan_without_pin(proposed, row);
        };
        let chunks = pin.chunks.into_iter().map(|(channel, id)| {
            let recipients = self.planned_recipients(proposed.post, channel, id)?;
            Ok(ChunkPlan { channel, recipients })
        });
        Ok(SlicePlan {
            post: proposed.post,
            author: proposed.author,
            slice: proposed.slice,
            version: pin.version,
            chunks: chunks.collect::<Result<_>>()?,
            next_after: pin.next_after,
        })
    }

    /// The plan of a slice's row of an older Herald, which stored neither the version nor the chunks of the slice. All
    /// chunks of the post are published again: consumers and broker recognise those that they have. When a later slice
    /// is planned too, the next slice is wrong, but that one answers with its own plan.
    fn recorded_plan_without_pin(&self, proposed: &SlicePlan, row: &[u8]) -> Result<SlicePlan> {
        let mut chunks = Vec::new();
        let mut last_follower = None;
        for channel in Channel::ALL {
            let prefix = row::channel_prefix(proposed.post, RowKind::Chunk, channel);
            for entry in self.rows.prefix(prefix) {
                let value = entry.value().map_err(map_err)?;
                let (last, recipients) = row::decode_chunk(&value)?;
                last_follower = last_follower.max(Some(last));
                chunks.push(ChunkPlan {
                    channel,
                    recipients: recipients.decode()?,
                });
            }
        }
        let last = row::Slice::decode(row)?.last;
        Ok(SlicePlan {
            post: proposed.post,
            author: proposed.author,
            slice: proposed.slice,
            version: proposed.version,
            chunks,
            next_after: if last { None } else { last_follower },
        })
    }

    fn planned_recipients(&self, post: PostId, channel: Channel, chunk: ChunkId) -> Result<Recipients> {
        let row = self
            .rows
            .get(row::chunk_key(post, RowKind::Chunk, channel, chunk))
            .map_err(map_err)?
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, "a planned chunk is missing in the ledger"))?;
        row::decode_chunk(&row)?.1.decode()
    }
}
