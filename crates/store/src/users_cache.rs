//! A cache of the dictionary of users, of both engines.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use herald_model::{UserId, UserKey};
use parking_lot::RwLock;

/// Approximate memory of an entry besides its id, bytes: nodes, counters and pointers.
const ENTRY_BYTES: usize = 176;

/// Pairs of ids and keys that were read.
///
/// *Invariant:* a pair that was forgotten is not in the cache: [`forget`](Self::forget) removes it, and what was read
/// before is not added later.
///
/// A process that shares the dictionary with others has a lease on its cache. Without a lease no pair is returned, and
/// none that was read before the next lease begins is returned in it.
pub(crate) struct UsersCache {
    keys: moka::sync::Cache<UserId, Cached<UserKey>>,
    ids: moka::sync::Cache<UserKey, Cached<UserId>>,
    /// `None`: no other process can forget pairs.
    lease: Option<Lease>,
    /// Pairs of earlier epochs are not returned.
    epoch: AtomicU64,
    /// Number of calls that removed pairs. The lock is held while pairs are added or removed.
    forgotten: RwLock<u64>,
    /// Held by the calls that use keys of the cache: those that began since the last [`Uses`] was made.
    uses: RwLock<Arc<()>>,
}

/// A call uses keys that it got from the cache, until this is dropped: an erasure waits for it. Take it before
/// [`Users::cached_key`](crate::Users::cached_key).
#[derive(Debug, Clone, Default)]
#[must_use = "keys are used until it is dropped"]
pub struct KeyUse(#[allow(dead_code, reason = "it counts")] Arc<()>);

/// The calls that used keys of a cache at a moment.
pub(crate) struct Uses(Weak<()>);

impl Uses {
    /// Whether all these calls have ended.
    pub(crate) fn have_ended(&self) -> bool {
        self.0.strong_count() == 0
    }
}

#[derive(Clone)]
struct Cached<T> {
    value: T,
    epoch: u64,
}

/// The begin of a read of the dictionary whose answer is cached.
#[derive(Clone, Copy)]
pub(crate) struct Reading(u64);

/// The right to return pairs, until a moment.
struct Lease {
    origin: Instant,
    /// Microseconds after `origin`.
    end: AtomicU64,
}

impl Lease {
    fn holds(&self) -> bool {
        microseconds(self.origin.elapsed()) < self.end.load(Ordering::Acquire)
    }
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl UsersCache {
    /// An empty cache of at most `bytes_max` bytes for each direction, of a process that has the dictionary alone.
    pub(crate) fn new(bytes_max: u64) -> Self {
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
            lease: None,
            epoch: AtomicU64::new(0),
            forgotten: RwLock::default(),
            uses: RwLock::default(),
        }
    }

    /// An empty cache that returns nothing until [`extend_lease`](Self::extend_lease) gives it a lease.
    pub(crate) fn leased(bytes_max: u64) -> Self {
        let lease = Lease {
            origin: Instant::now(),
            end: AtomicU64::new(0),
        };
        Self {
            lease: Some(lease),
            ..Self::new(bytes_max)
        }
    }

    /// Begins a read.
    pub(crate) fn begin(&self) -> Reading {
        Reading(*self.forgotten.read())
    }

    /// The key of an id.
    pub(crate) fn key(&self, id: &UserId) -> Option<UserKey> {
        self.keys.get(id).and_then(|cached| self.usable(cached))
    }

    /// The id of a key.
    pub(crate) fn id(&self, key: UserKey) -> Option<UserId> {
        self.ids.get(&key).and_then(|cached| self.usable(cached))
    }

    fn usable<T>(&self, cached: Cached<T>) -> Option<T> {
        let is_usable = cached.epoch == self.epoch.load(Ordering::Acquire) && self.has_lease();
        is_usable.then_some(cached.value)
    }

    /// Adds the key of an id.
    pub(crate) fn add_key(&self, reading: Reading, id: &UserId, key: UserKey) {
        self.add(reading, |epoch| {
            self.keys.insert(id.clone(), Cached { value: key, epoch });
        });
    }

    /// Adds the id of a key.
    pub(crate) fn add_id(&self, reading: Reading, key: UserKey, id: &UserId) {
        self.add(reading, |epoch| {
            let value = id.clone();
            self.ids.insert(key, Cached { value, epoch });
        });
    }

    fn add(&self, reading: Reading, insert: impl FnOnce(u64)) {
        let forgotten = self.forgotten.read();
        if *forgotten == reading.0 {
            insert(self.epoch.load(Ordering::Acquire));
        }
    }

    /// Begins the use of keys.
    pub(crate) fn use_keys(&self) -> KeyUse {
        KeyUse(Arc::clone(&self.uses.read()))
    }

    /// The calls that use keys now, and may use a key that was forgotten before this call.
    pub(crate) fn uses(&self) -> Uses {
        let mut uses = self.uses.write();
        let before = Arc::downgrade(&uses);
        *uses = Arc::default();
        Uses(before)
    }

    /// Removes a pair. Call it after the change is readable.
    pub(crate) fn forget(&self, id: &UserId, key: UserKey) {
        let mut forgotten = self.forgotten.write();
        *forgotten += 1;
        self.keys.invalidate(id);
        self.ids.invalidate(&key);
    }

    /// Removes all pairs. Call it after the changes are readable.
    pub(crate) fn forget_all(&self) {
        let mut forgotten = self.forgotten.write();
        *forgotten += 1;
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.keys.invalidate_all();
        self.ids.invalidate_all();
    }

    /// Extends the lease to a moment. If it had ended, no one knows what the others have forgotten since: all pairs are
    /// removed before the new lease begins.
    pub(crate) fn extend_lease(&self, end: Instant) {
        let Some(lease) = &self.lease else { return };
        if !lease.holds() {
            self.forget_all();
        }
        let end = microseconds(end.saturating_duration_since(lease.origin));
        lease.end.store(end, Ordering::Release);
    }

    /// Whether pairs are returned now.
    pub(crate) fn has_lease(&self) -> bool {
        self.lease.as_ref().is_none_or(Lease::holds)
    }

    /// Ends the lease.
    pub(crate) fn end_lease(&self) {
        if let Some(lease) = &self.lease {
            lease.end.store(0, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: UserKey = UserKey(1);

    fn ada() -> UserId {
        UserId::new("ada").unwrap()
    }

    fn add(cache: &UsersCache, reading: Reading) {
        cache.add_key(reading, &ada(), KEY);
        cache.add_id(reading, KEY, &ada());
    }

    /// The pair in both directions.
    fn cached(cache: &UsersCache) -> (Option<UserKey>, Option<UserId>) {
        (cache.key(&ada()), cache.id(KEY))
    }

    fn in_a_minute() -> Instant {
        Instant::now() + Duration::from_mins(1)
    }

    #[test]
    fn uses_end_with_the_calls_that_began_before() {
        let cache = UsersCache::new(1 << 20);
        assert!(cache.uses().have_ended());
        let (first, second) = (cache.use_keys(), cache.use_keys());
        let uses = cache.uses();
        let later = cache.use_keys();
        drop(first);
        assert!(!uses.have_ended());
        drop(second);
        assert!(uses.have_ended());
        drop(later);
    }

    #[test]
    fn a_pair_that_was_read_before_it_was_forgotten_is_not_added() {
        type Forget = fn(&UsersCache);
        let forgets: [Forget; 2] = [|cache| cache.forget(&ada(), KEY), UsersCache::forget_all];
        for forget in forgets {
            let cache = UsersCache::new(1 << 20);
            let early = cache.begin();
            add(&cache, early);
            assert_eq!(cached(&cache), (Some(KEY), Some(ada())));
            forget(&cache);
            assert_eq!(cached(&cache), (None, None));
            add(&cache, early);
            assert_eq!(cached(&cache), (None, None));
            cache.add_key(cache.begin(), &ada(), UserKey(2));
            assert_eq!(cache.key(&ada()), Some(UserKey(2)));
        }
    }

    #[test]
    fn a_pair_is_returned_in_the_lease_in_which_it_was_read() {
        let cache = UsersCache::leased(1 << 20);
        let before = cache.begin();
        add(&cache, before);
        assert_eq!(cached(&cache), (None, None), "there is no lease yet");
        cache.extend_lease(in_a_minute());
        assert_eq!(cached(&cache), (None, None), "it was read before the lease");
        add(&cache, before);
        assert_eq!(cached(&cache), (None, None), "it was read before the lease");
        let within = cache.begin();
        add(&cache, within);
        assert_eq!(cached(&cache), (Some(KEY), Some(ada())));
        cache.extend_lease(in_a_minute());
        assert_eq!(cached(&cache), (Some(KEY), Some(ada())), "the lease goes on");

        // It ends.
        cache.extend_lease(Instant::now());
        assert_eq!(cached(&cache), (None, None));
        cache.extend_lease(in_a_minute());
        assert_eq!(cached(&cache), (None, None), "it was read in an earlier lease");
        add(&cache, within);
        assert_eq!(cached(&cache), (None, None), "it was read in an earlier lease");
        add(&cache, cache.begin());
        assert_eq!(cached(&cache), (Some(KEY), Some(ada())));
        cache.end_lease();
        assert_eq!(cached(&cache), (None, None));
    }
}
