//! How far each slice of users is merged.

use std::sync::{Arc, PoisonError, RwLock};

use fjall::compaction::filter::{
    CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict,
};

use super::{keys::read_run_key, pair};

/// By slice: blocks of runs up to this one are merged.
#[derive(Default)]
pub(super) struct Marks(RwLock<Arc<Vec<u64>>>);

impl Marks {
    /// The mark of one slice, 0 when nothing is merged.
    pub(super) fn of(&self, slice: u32) -> u64 {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(slice as usize)
            .copied()
            .unwrap_or(0)
    }

    /// All of them, as they are now.
    pub(super) fn all(&self) -> Arc<Vec<u64>> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes that a slice is merged up to a run.
    pub(super) fn raise(&self, slice: u32, run: u64) {
        let mut marks = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let marks = Arc::make_mut(&mut marks);
        let slice = slice as usize;
        if slice >= marks.len() {
            marks.resize(slice + 1, 0);
        }
        marks[slice] = marks[slice].max(run);
    }

    /// Makes the filters that let compaction drop what is merged.
    pub(super) fn factory(self: &Arc<Self>) -> Arc<dyn Factory> {
        Arc::new(DropMerged(Arc::clone(self)))
    }
}

struct DropMerged(Arc<Marks>);

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
                .is_some_and(|mark| run <= *mark)
        });
        // Keys are written once, so no tombstone is needed.
        Ok(if merged { Verdict::Destroy } else { Verdict::Keep })
    }
}
