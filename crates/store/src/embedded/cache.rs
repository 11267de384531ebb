//! A bounded cache of rows that can change.

use std::{
    hash::{BuildHasher, Hash},
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;

use crate::Result;

/// Approximate overhead of a cache entry, bytes: nodes, counters and pointers.
pub(super) const ENTRY_BYTES: usize = 160;

/// Number of locks that order loads and invalidations.
const STRIPES: usize = 64;

/// A read-through cache, bounded by weight.
///
/// *Invariant:* after [`invalidate`](Self::invalidate) returned, the cache returns no value that was loaded before the
/// change. A value whose load overlaps an invalidation is returned once and not cached.
pub(super) struct Cache<K, V> {
    values: moka::sync::Cache<K, V>,
    hasher: std::hash::RandomState,
    stripes: Vec<Stripe>,
}

/// Number of invalidations in a stripe. The lock is held while values are inserted or removed.
#[derive(Default)]
struct Stripe {
    invalidations: AtomicU64,
    lock: Mutex<()>,
}

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// An empty cache of at most `bytes_max` bytes. `weigh` returns the bytes of an entry without the cache's overhead.
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

    /// Returns the value of a key; loads it if it is not cached. A load that returns `None` is not cached.
    pub(super) fn get_or_load(
        &self,
        key: K,
        load: impl FnOnce(&K) -> Result<Option<V>>,
    ) -> Result<Option<V>> {
        if let Some(value) = self.values.get(&key) {
            return Ok(Some(value));
        }
        let stripe = self.stripe(&key);
        let invalidations = stripe.invalidations.load(Ordering::Acquire);
        let Some(value) = load(&key)? else { return Ok(None) };
        let _lock = stripe.lock.lock();
        if stripe.invalidations.load(Ordering::Acquire) == invalidations {
            self.values.insert(key, value.clone());
        }
        Ok(Some(value))
    }

    /// Removes a value. Call it after the change is readable and before the writer returns.
    pub(super) fn invalidate(&self, key: &K) {
        let stripe = self.stripe(key);
        let _lock = stripe.lock.lock();
        stripe.invalidations.fetch_add(1, Ordering::AcqRel);
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
    fn a_value_is_loaded_once_until_it_is_invalidated() {
        let cache = Cache::new("test", 10_000, |_: &u32, _: &u32| 8);
        assert_eq!(cache.get_or_load(1, |_| Ok(Some(10))).unwrap(), Some(10));
        assert_eq!(cache.get_or_load(1, |_| Ok(Some(11))).unwrap(), Some(10));
        cache.invalidate(&1);
        assert_eq!(cache.get_or_load(1, |_| Ok(Some(11))).unwrap(), Some(11));
        assert_eq!(cache.get_or_load(2, |_| Ok(None)).unwrap(), None);
        assert_eq!(cache.get_or_load(2, |_| Ok(Some(20))).unwrap(), Some(20));
    }

    #[test]
    fn a_load_that_overlaps_an_invalidation_is_not_cached() {
        let cache = Cache::new("test", 10_000, |_: &u32, _: &u32| 8);
        let old = cache.get_or_load(1, |key| {
            cache.invalidate(key);
            Ok(Some(10))
        });
        assert_eq!(old.unwrap(), Some(10));
        assert_eq!(cache.get_or_load(1, |_| Ok(Some(11))).unwrap(), Some(11));
    }
}
