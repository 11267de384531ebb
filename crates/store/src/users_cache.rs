//! A cache of the dictionary of users, of both engines.

use std::time::{Duration, Instant};

use herald_model::{UserId, UserKey};
use parking_lot::RwLock;

/// Approximate memory of an entry besides its id, bytes: nodes, counters and pointers.
const ENTRY_BYTES: usize = 176;

/// Pairs of ids and keys that were read.
///
/// *Invariant:* a pair that this process has forgotten is not in the cache: [`forget`](Self::forget) removes it, and
/// what was read before is not added later. A pair that another process has forgotten is not returned for longer than
/// the maximum age, counted from before it was read.
pub(crate) struct UsersCache {
    keys: moka::sync::Cache<UserId, Cached<UserKey>>,
    ids: moka::sync::Cache<UserKey, Cached<UserId>>,
    age_max: Option<Duration>,
    /// Number of pairs that were forgotten. The lock is held while pairs are added or removed.
    forgotten: RwLock<u64>,
}

#[derive(Clone)]
struct Cached<T> {
    value: T,
    read_at: Instant,
}

/// The begin of a read of the dictionary whose answer is cached.
#[derive(Clone, Copy)]
pub(crate) struct Reading {
    forgotten: u64,
    at: Instant,
}

impl UsersCache {
    /// An empty cache of at most `bytes_max` bytes for each direction. `age_max` bounds the age of pairs, and is needed
    /// if other processes can forget pairs.
    pub(crate) fn new(bytes_max: u64, age_max: Option<Duration>) -> Self {
        let weigh = |id: &UserId| u32::try_from(id.as_str().len() + ENTRY_BYTES).unwrap_or(u32::MAX);
        Self {
            keys: moka::sync::Cache::builder()
                .name("user-keys")
                .max_capacity(bytes_max)
                .weigher(move |id, _| weigh(id))
                .build(),
            ids: moka::sync::Cache::builder()
                .name("user-ids")
                .max_capacity(bytes_max)
                .weigher(move |_, id: &Cached<UserId>| weigh(&id.value))
                .build(),
            age_max,
            forgotten: RwLock::default(),
        }
    }

    /// Begins a read.
    pub(crate) fn begin(&self) -> Reading {
        Reading {
            forgotten: *self.forgotten.read(),
            at: Instant::now(),
        }
    }

    /// The key of an id.
    pub(crate) fn key(&self, id: &UserId) -> Option<UserKey> {
        self.keys.get(id).and_then(|cached| self.fresh(cached))
    }

    /// The id of a key.
    pub(crate) fn id(&self, key: UserKey) -> Option<UserId> {
        self.ids.get(&key).and_then(|cached| self.fresh(cached))
    }

    fn fresh<T>(&self, cached: Cached<T>) -> Option<T> {
        let is_fresh = self.age_max.is_none_or(|max| cached.read_at.elapsed() < max);
        is_fresh.then_some(cached.value)
    }

    /// Adds the key of an id.
    pub(crate) fn add_key(&self, reading: Reading, id: &UserId, key: UserKey) {
        self.add(reading, || {
            let read_at = reading.at;
            self.keys.insert(id.clone(), Cached { value: key, read_at });
        });
    }

    /// Adds the id of a key.
    pub(crate) fn add_id(&self, reading: Reading, key: UserKey, id: &UserId) {
        self.add(reading, || {
            let (value, read_at) = (id.clone(), reading.at);
            self.ids.insert(key, Cached { value, read_at });
        });
    }

    fn add(&self, reading: Reading, insert: impl FnOnce()) {
        let forgotten = self.forgotten.read();
        if *forgotten == reading.forgotten {
            insert();
        }
    }

    /// Removes a pair. Call it after the change is readable.
    pub(crate) fn forget(&self, id: &UserId, key: UserKey) {
        let mut forgotten = self.forgotten.write();
        *forgotten += 1;
        self.keys.invalidate(id);
        self.ids.invalidate(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ada() -> UserId {
        UserId::new("ada").unwrap()
    }

    #[test]
    fn a_pair_that_was_read_before_it_was_forgotten_is_not_added() {
        let cache = UsersCache::new(1 << 20, None);
        let (early, ada) = (cache.begin(), ada());
        cache.add_key(early, &ada, UserKey(1));
        cache.add_id(early, UserKey(1), &ada);
        assert_eq!(
            (cache.key(&ada), cache.id(UserKey(1))),
            (Some(UserKey(1)), Some(ada.clone()))
        );
        cache.forget(&ada, UserKey(1));
        assert_eq!((cache.key(&ada), cache.id(UserKey(1))), (None, None));
        cache.add_key(early, &ada, UserKey(1));
        cache.add_id(early, UserKey(1), &ada);
        assert_eq!((cache.key(&ada), cache.id(UserKey(1))), (None, None));
        cache.add_key(cache.begin(), &ada, UserKey(2));
        assert_eq!(cache.key(&ada), Some(UserKey(2)));
    }

    #[test]
    fn a_pair_is_as_old_as_the_begin_of_its_read() {
        let cache = UsersCache::new(1 << 20, Some(Duration::from_mins(1)));
        let now = cache.begin();
        let Some(before) = now.at.checked_sub(Duration::from_mins(1)) else {
            return;
        };
        cache.add_key(Reading { at: before, ..now }, &ada(), UserKey(1));
        assert_eq!(cache.key(&ada()), None);
        cache.add_key(now, &ada(), UserKey(1));
        assert_eq!(cache.key(&ada()), Some(UserKey(1)));
    }
}
