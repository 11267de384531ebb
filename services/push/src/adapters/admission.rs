//! Admission control: limits the requests in flight in total and per host, each shared by the lanes, and blocks hosts
//! whose circuit breaker is open.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use herald_model::Lane;
use parking_lot::Mutex;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use crate::{
    Config,
    domain::{Breaker, Verdict},
};

/// Number of hosts from which on idle hosts are evicted.
const HOSTS_MAX: usize = 1_024;

/// The limits of all requests.
#[derive(Debug)]
pub(crate) struct Admission {
    sends: Limit,
    host_max: usize,
    hosts: Mutex<Hosts>,
}

/// A limit of requests in flight that lanes share: the normal lane gets up to three quarters, the low lane a quarter.
/// So requests of the lower lanes never queue for the whole limit ahead of the high lane.
#[derive(Debug)]
struct Limit {
    total: Arc<Semaphore>,
    lanes: [Arc<Semaphore>; Lane::ALL.len()],
}

/// The permits of a lane and of the total.
type Permits = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Limit {
    fn new(max: usize) -> Self {
        let share = |lane| match lane {
            Lane::High => max,
            Lane::Normal => max * 3 / 4,
            Lane::Low => max / 4,
        };
        Self {
            total: Arc::new(Semaphore::new(max)),
            lanes: Lane::ALL.map(|lane| Arc::new(Semaphore::new(share(lane).max(1)))),
        }
    }

    /// Waits for a permit of the lane, then for one of the total.
    async fn acquire(&self, lane: Lane) -> Result<Permits, AcquireError> {
        let lane = self.lanes[lane as usize].clone().acquire_owned().await?;
        Ok((lane, self.total.clone().acquire_owned().await?))
    }
}

#[derive(Debug)]
struct Hosts {
    by_origin: HashMap<String, Arc<Host>>,
    /// Number of hosts that triggers the next eviction.
    evict_at: usize,
}

#[derive(Debug)]
struct Host {
    sends: Limit,
    breaker: Mutex<Breaker>,
}

/// Permission to send one request. Dropped without a report, it leaves the circuit breaker as if no request was sent.
#[derive(Debug)]
pub(crate) struct Permit {
    host: Arc<Host>,
    reported: bool,
    _permits: (Permits, Permits),
}

impl Admission {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            sends: Limit::new(config.sends_max),
            host_max: config.sends_per_host_max,
            hosts: Mutex::new(Hosts {
                by_origin: HashMap::new(),
                evict_at: HOSTS_MAX,
            }),
        }
    }

    /// Waits for a permit. The error is the delay until the host may be tried again.
    ///
    /// The permits of the host are acquired first, so that a request waiting for a slow host holds no permit that
    /// requests to other hosts need.
    pub(crate) async fn acquire(&self, lane: Lane, origin: &str) -> Result<Permit, Duration> {
        let host = self.host(origin);
        if let Some(wait) = host.breaker.lock().open_for(Instant::now()) {
            return Err(wait);
        }
        // The semaphores are never closed.
        let closed = |_| Duration::ZERO;
        let host_permits = host.sends.acquire(lane).await.map_err(closed)?;
        let permits = self.sends.acquire(lane).await.map_err(closed)?;
        host.breaker.lock().admit(Instant::now())?;
        Ok(Permit {
            host,
            reported: false,
            _permits: (host_permits, permits),
        })
    }

    fn host(&self, origin: &str) -> Arc<Host> {
        let mut hosts = self.hosts.lock();
        if let Some(host) = hosts.by_origin.get(origin) {
            return host.clone();
        }
        if hosts.by_origin.len() >= hosts.evict_at {
            let now = Instant::now();
            hosts
                .by_origin
                .retain(|_, host| Arc::strong_count(host) > 1 || host.breaker.lock().open_for(now).is_some());
            // Double the threshold, so that an eviction that frees little does not run at every new host.
            hosts.evict_at = HOSTS_MAX.max(2 * hosts.by_origin.len());
        }
        let host = Arc::new(Host {
            sends: Limit::new(self.host_max),
            breaker: Mutex::default(),
        });
        hosts.by_origin.insert(origin.to_owned(), host.clone());
        host
    }
}

impl Permit {
    /// Reports the verdict to the circuit breaker of the host.
    pub(crate) fn report(mut self, verdict: &Verdict) {
        self.reported = true;
        self.host.breaker.lock().report(Instant::now(), verdict);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.reported {
            self.host.breaker.lock().cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::domain::Reason;

    fn admission(sends_max: usize, sends_per_host_max: usize) -> Admission {
        Admission::new(&Config {
            sends_max,
            sends_per_host_max,
            ..Config::default()
        })
    }

    #[test]
    fn a_host_at_its_limit_does_not_block_other_hosts() {
        let admission = admission(8, 2);
        let acquire = |host| admission.acquire(Lane::High, host).now_or_never();
        let first = acquire("https://a").unwrap().unwrap();
        let _second = acquire("https://a").unwrap().unwrap();
        assert!(acquire("https://a").is_none());
        let _other = acquire("https://b").unwrap().unwrap();
        drop(first);
        assert!(acquire("https://a").is_some());
    }

    /// Nearly all Web Push goes to two or three hosts, so the lanes must hold within one.
    #[test]
    fn the_lower_lanes_leave_capacity_of_a_host_for_the_high_lane() {
        let admission = admission(1_000, 8);
        let acquire = |lane| admission.acquire(lane, "https://a").now_or_never();
        let take = |lane| std::iter::from_fn(|| acquire(lane)).collect::<Vec<_>>();
        let low = take(Lane::Low);
        let normal = take(Lane::Normal);
        assert_eq!((low.len(), normal.len()), (2, 6));
        drop(normal);
        let mut waiting = std::pin::pin!(admission.acquire(Lane::Low, "https://a"));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert_eq!(
            take(Lane::High).len(),
            6,
            "a waiting push of the low lane takes no permit"
        );
        // A push that waits for a permit of a full host holds none of the other hosts'.
        let mut full = std::pin::pin!(admission.acquire(Lane::Low, "https://a"));
        assert!(full.as_mut().now_or_never().is_none());
        let other = admission.acquire(Lane::Low, "https://b").now_or_never();
        assert!(other.unwrap().is_ok());
    }

    #[test]
    fn the_low_lane_leaves_capacity_for_the_high_lane() {
        let admission = admission(8, 8);
        let low: Vec<_> = (0..2)
            .map(|_| admission.acquire(Lane::Low, "https://a").now_or_never().unwrap())
            .collect();
        assert!(admission.acquire(Lane::Low, "https://a").now_or_never().is_none());
        assert!(
            admission
                .acquire(Lane::High, "https://a")
                .now_or_never()
                .unwrap()
                .is_ok()
        );
        drop(low);
    }

    #[test]
    fn a_failing_host_is_blocked() {
        let admission = admission(8, 8);
        let timeout = Verdict::Retry {
            reason: Reason::Timeout,
            after: None,
        };
        for _ in 0..16 {
            admission
                .acquire(Lane::High, "https://a")
                .now_or_never()
                .unwrap()
                .unwrap()
                .report(&timeout);
        }
        assert!(
            admission
                .acquire(Lane::High, "https://a")
                .now_or_never()
                .unwrap()
                .is_err()
        );
        assert!(
            admission
                .acquire(Lane::High, "https://b")
                .now_or_never()
                .unwrap()
                .is_ok()
        );
    }

    #[test]
    fn idle_hosts_are_evicted() {
        let admission = admission(8, 8);
        let used = admission
            .acquire(Lane::High, "https://used")
            .now_or_never()
            .unwrap()
            .unwrap();
        for host in 0..3 * HOSTS_MAX {
            drop(
                admission
                    .acquire(Lane::High, &format!("https://{host}"))
                    .now_or_never()
                    .unwrap()
                    .unwrap(),
            );
        }
        let hosts = admission.hosts.lock();
        assert!(hosts.by_origin.len() <= HOSTS_MAX);
        assert!(hosts.by_origin.contains_key("https://used"));
        drop(used);
    }
}
