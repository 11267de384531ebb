//! A bounded cache in front of rows that change.

use std::{
    hash::{BuildHasher, Hash},
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;

use crate::Result;

/// What an entry costs besides its own bytes, roughly: nodes, counters and pointers of the cache.
pub(super) const ENTRY_BYTES: usize = 160;

/// How many locks stand between loads and changes.
const STRIPES: usize = 64;

/// Values by key, bounded by weight.
///
/// *Invariant:* after [`changed`](Self::changed) returned, no value that was loaded before the change is read again. A
/// load that overlaps a change is used once and not kept.
pub(super) struct Cache<K, V> {
    values: moka::sync::Cache<K, V>,
    hasher: std::hash::RandomState,
    stripes: Vec<Stripe>,
}

/// How often something in a stripe has changed; the lock is held while values go in and out.
#[derive(Default)]
struct Stripe {
    changes: AtomicU64,
    lock: Mutex<()>,
}

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// An empty cache of at most `bytes_max` bytes, where `weigh` tells the bytes of an entry without the cache's own.
    pub(super) fn new(
        name: &str,
        bytes_max: u64,
        weigh: impl Fn(&K, &V) -> usize + Send + Sync + 'static,
    ) -> Self {
        let values = moka::sync::Cache::builder()
            .name(name)
            .max_capacity(bytes_max)
            .weigher(move |key, value| u32::try_from(weigh(key, value) + ENTRY_BYTES).unwrap_or(u32::MAX))
            .build();
        Self {
            values,
            hasher: std::hash::RandomState::new(),
            stripes: (0..STRIPES).map(|_| Stripe::default()).collect(),
        }
    }

    /// The value of a key, loaded when it isn't there. `None` of the load is not kept.
    pub(super) fn get_or_load(
        &self,
        key: K,
        load: impl FnOnce(&K) -> Result<Option<V>>,
    ) -> Result<Option<V>> {
        if let Some(value) = self.values.get(&key) {
            return Ok(Some(value));
        }
        let stripe = self.stripe(&key);
        let changes = stripe.changes.load(Ordering::Acquire);
        let Some(value) = load(&key)? else { return Ok(None) };
        let _lock = stripe.lock.lock();
        if stripe.changes.load(Ordering::Acquire) == changes {
            self.values.insert(key, value.clone());
        }
        Ok(Some(value))
    }

    /// Forgets a value. To be called after the change can be read, and before it is answered.
    pub(super) fn changed(&self, key: &K) {
        let stripe = self.stripe(key);
        let _lock = stripe.lock.lock();
        stripe.changes.fetch_add(1, Ordering::AcqRel);
        self.values.invalidate(key);
    }

    fn stripe(&self, key: &K) -> &Stripe {
        &self.stripes[self.hasher.hash_one(key) as usize % STRIPES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_loaded_once_until_it_changes() {
        let cache = Cache::new("test", 10_000, |_: &u32, _: &u32| 8);
        assert_eq!(cache.get_or_load(1, |_| Ok(Some(10))).unwrap(), Some(10));
        assert_eq!(cache.get_or_load(1, |_| Ok(Some(11))).unwrap(), Some(10));
        cache.changed(&1);
        assert_eq!(cache.get_or_load(1, |_| Ok(Some(11))).unwrap(), Some(11));
        assert_eq!(cache.get_or_load(2, |_| Ok(None)).unwrap(), None);
        assert_eq!(cache.get_or_load(2, |_| Ok(Some(20))).unwrap(), Some(20));
    }

    #[test]
    fn a_load_that_overlaps_a_change_is_not_kept() {
        let cache = Cache::new("test", 10_000, |_: &u32, _: &u32| 8);
        let old = cache.get_or_load(1, |key| {
            cache.changed(key);
            Ok(Some(10))
        });
        assert_eq!(old.unwrap(), Some(10));
        assert_eq!(cache.get_or_load(1, |_| Ok(Some(11))).unwrap(), Some(11));
    }
}
