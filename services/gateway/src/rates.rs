//! Limits of rates, by key and in bounded memory.
//!
//! Each key has a bucket that fills at a steady rate up to a burst (the generic cell rate algorithm, by governor). A key
//! whose bucket is full again is forgotten: it is like one that was never seen. If more keys are busy at once than are
//! remembered, the further ones share one bucket, so that an attacker with very many keys gets no more than one of them.

use std::{
    collections::HashMap,
    hash::Hash,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use governor::{
    Quota, RateLimiter,
    clock::Clock,
    nanos::Nanos,
    state::{StateStore, keyed::ShrinkableKeyedStateStore},
};
use parking_lot::Mutex;

/// Maximum number of busy keys that have a bucket of their own, some 5 MB.
const KEYS_MAX: usize = 65_536;
/// Number of keys from which idle ones are looked for.
const SWEEP_MIN: usize = 1_024;

/// A limit of a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// In the long run; 0: no limit.
    pub(crate) per_second: u32,
    /// At once; 0: as many as in a second.
    pub(crate) burst: u32,
}

impl Rate {
    fn quota(self) -> Option<Quota> {
        let per_second = NonZeroU32::new(self.per_second)?;
        let burst = NonZeroU32::new(self.burst).unwrap_or(per_second);
        Some(Quota::per_second(per_second).allow_burst(burst))
    }
}

/// The clock of tokio, which tests move.
#[derive(Debug, Clone)]
struct TokioClock;

impl Clock for TokioClock {
    type Instant = Instant;

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

/// Limits the rate of each key. Clones share the buckets.
pub(crate) struct Rates<K: Hash + Eq + Clone>(Option<Arc<Limit<K>>>);

struct Limit<K: Hash + Eq + Clone> {
    limiter: RateLimiter<K, Store<K>, TokioClock>,
    buckets: Arc<Mutex<Buckets<K>>>,
}

impl<K: Hash + Eq + Clone> Clone for Rates<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Hash + Eq + Clone> Rates<K> {
    /// Limits each key to this rate.
    pub(crate) fn new(rate: Rate) -> Self {
        Self::with_keys_max(rate, KEYS_MAX)
    }

    fn with_keys_max(rate: Rate, keys_max: usize) -> Self {
        let limit = rate.quota().map(|quota| {
            let buckets = Arc::new(Mutex::new(Buckets {
                keys_max,
                keys: HashMap::new(),
                others: None,
                unknown: 0,
                sweep_after: SWEEP_MIN,
            }));
            Arc::new(Limit {
                limiter: RateLimiter::new(quota, Store(buckets.clone()), TokioClock),
                buckets,
            })
        });
        Self(limit)
    }

    /// Whether there is a limit.
    pub(crate) fn are_limited(&self) -> bool {
        self.0.is_some()
    }

    /// Takes one from the bucket of a key.
    ///
    /// # Errors
    /// The bucket is empty: the time until it has one again.
    pub(crate) fn take(&self, key: &K) -> Result<(), Duration> {
        let Some(limit) = &self.0 else {
            return Ok(());
        };
        if limit.buckets.lock().must_sweep() {
            limit.limiter.retain_recent();
        }
        let taken = limit.limiter.check_key(key);
        taken.map_err(|until| until.wait_time_from(limit.limiter.clock().now()))
    }
}

/// The buckets of keys.
struct Buckets<K> {
    keys_max: usize,
    /// The time at which the bucket of a key is full again.
    keys: HashMap<K, Nanos>,
    /// The same of the bucket that keys without one of their own share.
    others: Option<Nanos>,
    /// Number of keys without a bucket that came since the last sweep.
    unknown: usize,
    /// Number of them after which idle keys are removed.
    sweep_after: usize,
}

impl<K> Buckets<K> {
    fn must_sweep(&self) -> bool {
        self.unknown >= self.sweep_after
    }
}

/// The buckets as governor uses them.
struct Store<K>(Arc<Mutex<Buckets<K>>>);

impl<K: Hash + Eq + Clone> StateStore for Store<K> {
    type Key = K;

    fn measure_and_replace<T, F, E>(&self, key: &K, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let buckets = &mut *self.0.lock();
        if let Some(bucket) = buckets.keys.get_mut(key) {
            let (taken, next) = f(Some(*bucket))?;
            *bucket = next;
            return Ok(taken);
        }
        buckets.unknown += 1;
        if buckets.keys.len() < buckets.keys_max {
            let (taken, next) = f(None)?;
            buckets.keys.insert(key.clone(), next);
            return Ok(taken);
        }
        let (taken, next) = f(buckets.others)?;
        buckets.others = Some(next);
        Ok(taken)
    }
}

impl<K: Hash + Eq + Clone> ShrinkableKeyedStateStore<K> for Store<K> {
    fn retain_recent(&self, drop_below: Nanos) {
        let mut buckets = self.0.lock();
        buckets.keys.retain(|_, full_at| *full_at > drop_below);
        // Looking at all keys costs no more than what has come since did.
        buckets.unknown = 0;
        buckets.sweep_after = buckets.keys.len().max(SWEEP_MIN);
    }

    fn len(&self) -> usize {
        self.0.lock().keys.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const RATE: Rate = Rate {
        per_second: 10,
        burst: 20,
    };

    fn taken(rates: &Rates<u32>, key: u32, tries: usize) -> usize {
        (0..tries).filter(|_| rates.take(&key).is_ok()).count()
    }

    fn remembered(rates: &Rates<u32>) -> usize {
        rates.0.as_ref().unwrap().buckets.lock().keys.len()
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_has_its_burst_and_then_its_rate() {
        let rates = Rates::new(RATE);
        assert_eq!(taken(&rates, 1, 100), 20);
        assert_eq!(rates.take(&1), Err(Duration::from_millis(100)));
        advance(Duration::from_secs(1)).await;
        assert_eq!(taken(&rates, 1, 100), 10);
        // Another key is not concerned.
        assert_eq!(taken(&rates, 2, 100), 20);
        advance(Duration::from_mins(1)).await;
        assert_eq!(taken(&rates, 1, 100), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_burst_it_is_that_of_a_second_and_without_a_rate_there_is_no_limit() {
        let limited = Rates::new(Rate { burst: 0, ..RATE });
        assert_eq!(taken(&limited, 1, 100), 10);
        let unlimited = Rates::new(Rate {
            per_second: 0,
            burst: 20,
        });
        assert_eq!(taken(&unlimited, 1, 1_000), 1_000);
    }

    #[tokio::test(start_paused = true)]
    async fn keys_beyond_the_maximum_share_one_bucket() {
        let rates = Rates::with_keys_max(RATE, 2);
        assert_eq!((taken(&rates, 1, 1), taken(&rates, 2, 1)), (1, 1));
        let others: usize = (3..1_000).map(|key| taken(&rates, key, 1)).sum();
        assert_eq!(others, 20);
        assert_eq!(remembered(&rates), 2);
        // Those that have a bucket keep it.
        assert_eq!(taken(&rates, 1, 100), 19);
        // When they are idle, others get one.
        advance(Duration::from_mins(1)).await;
        for _ in 0..SWEEP_MIN {
            let _ = rates.take(&2_000);
        }
        assert_eq!(taken(&rates, 5_000, 100), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_keys_are_forgotten() {
        let rates = Rates::new(RATE);
        for key in 0..10_000 {
            assert_eq!(rates.take(&key), Ok(()));
        }
        assert_eq!(remembered(&rates), 10_000);
        advance(Duration::from_mins(1)).await;
        for key in 20_000..31_000 {
            assert_eq!(rates.take(&key), Ok(()));
        }
        assert!(remembered(&rates) <= 11_000, "{}", remembered(&rates));
        for key in 0..1_000_000 {
            let _ = rates.take(&key);
        }
        assert!(remembered(&rates) <= KEYS_MAX);
    }
}
