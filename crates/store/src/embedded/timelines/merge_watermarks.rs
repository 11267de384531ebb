//! Merge watermarks: how far each slice of users is merged.

use std::sync::{Arc, PoisonError, RwLock};

use fjall::compaction::filter::{
    CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict,
};

use super::{keys::read_run_key, pair};

/// For each slice, the last run whose blocks are merged.
#[derive(Default)]
pub(super) struct MergeWatermarks(RwLock<Arc<Vec<u64>>>);

impl MergeWatermarks {
    /// The watermark of a slice; 0 if nothing is merged.
    pub(super) fn get(&self, slice: u32) -> u64 {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(slice as usize)
            .copied()
            .unwrap_or(0)
    }

    /// A snapshot of all watermarks, indexed by slice.
    pub(super) fn all(&self) -> Arc<Vec<u64>> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Raises the watermark of a slice; a smaller value is ignored.
    pub(super) fn raise(&self, slice: u32, run: u64) {
        let mut watermarks = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let watermarks = Arc::make_mut(&mut watermarks);
        let slice = slice as usize;
        if slice >= watermarks.len() {
            watermarks.resize(slice + 1, 0);
        }
        watermarks[slice] = watermarks[slice].max(run);
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
                .get((group >> pair::SLICE_GROUP_BITS) as usize)
                .is_some_and(|watermark| run <= *watermark)
        });
        // No tombstone is needed because a key is written once.
        Ok(if merged { Verdict::Destroy } else { Verdict::Keep })
    }
}
