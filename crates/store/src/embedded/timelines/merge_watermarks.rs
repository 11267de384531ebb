//! Merge watermarks: how far each shard of users is merged.

use std::sync::{Arc, PoisonError, RwLock};

use fjall::compaction::filter::{
    CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict,
};

use super::{keys::read_run_key, pair};

/// For each shard, the last run whose blocks are merged.
#[derive(Default)]
pub(super) struct MergeWatermarks(RwLock<Arc<Vec<u64>>>);

impl MergeWatermarks {
    /// The watermark of a shard; 0 if nothing is merged.
    pub(super) fn get(&self, shard: u32) -> u64 {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(shard as usize)
            .copied()
            .unwrap_or(0)
    }

    /// A snapshot of all watermarks, indexed by shard.
    pub(super) fn all(&self) -> Arc<Vec<u64>> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Raises the watermark of a shard; a smaller value is ignored.
    pub(super) fn raise(&self, shard: u32, run: u64) {
        let mut watermarks = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let watermarks = Arc::make_mut(&mut watermarks);
        let shard = shard as usize;
        if shard >= watermarks.len() {
            watermarks.resize(shard + 1, 0);
        }
        watermarks[shard] = watermarks[shard].max(run);
    }

    /// Creates the compaction filter that drops merged blocks.
    pub(super) fn factory(self: &Arc<Self>) -> Arc<dyn Factory> {
        Arc::new(DropMerged(Arc::clone(self)))
    }
}

struct DropMerged(Arc<MergeWatermarks>);

impl Factory for DropMerged {
    fn name(&self) -> &'static str {
        "drop merged blocks"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(Filter(self.0.all()))
    }
}

struct Filter(Arc<Vec<u64>>);

impl CompactionFilter for Filter {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> CompactionFilterResult {
        let merged = read_run_key(item.key()).is_ok_and(|(group, run)| {
            self.0
                .get((group >> pair::SHARD_GROUP_BITS) as usize)
                .is_some_and(|watermark| run <= *watermark)
        });
        // No tombstone is needed because a key is written once.
        Ok(if merged { Verdict::Destroy } else { Verdict::Keep })
    }
}
