//! Admission control: limits the requests in flight in total, per lane and per host, and blocks hosts whose circuit
//! breaker is open.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use herald_model::Lane;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::{
    Config,
    domain::{Breaker, Verdict},
};

/// Number of hosts from which on idle hosts are evicted.
const HOSTS_MAX: usize = 1_024;

/// The limits of all requests.
#[derive(Debug)]
pub(crate) struct Admission {
    total: Semaphore,
    lanes: [Semaphore; Lane::ALL.len()],
    host_max: usize,
    hosts: Mutex<Hosts>,
}

#[derive(Debug)]
struct Hosts {
    by_origin: HashMap<String, Arc<Host>>,
    /// Number of hosts that triggers the next eviction.
    evict_at: usize,
}

#[derive(Debug)]
struct Host {
    permits: Arc<Semaphore>,
    breaker: Mutex<Breaker>,
}

/// Permission to send one request. Dropped without a report, it leaves the circuit breaker as if no request was sent.
#[derive(Debug)]
pub(crate) struct Permit<'a> {
    host: Arc<Host>,
    reported: bool,
    _permits: (OwnedSemaphorePermit, SemaphorePermit<'a>, SemaphorePermit<'a>),
}

impl Admission {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            total: Semaphore::new(config.sends_max),
            lanes: Lane::ALL.map(|lane| Semaphore::new(config.lane_sends_max(lane))),
            host_max: config.sends_per_host_max,
            hosts: Mutex::new(Hosts {
                by_origin: HashMap::new(),
                evict_at: HOSTS_MAX,
            }),
        }
    }

    /// Waits for a permit. The error is the delay until the host may be tried again.
    ///
    /// The permit of the host is acquired first, so that a request waiting for a slow host holds no permit that
    /// requests to other hosts need.
    pub(crate) async fn acquire(&self, lane: Lane, origin: &str) -> Result<Permit<'_>, Duration> {
        let host = self.host(origin);
        if let Some(wait) = host.breaker.lock().open_for(Instant::now()) {
            return Err(wait);
        }
        // The semaphores are never closed.
        let closed = |_| Duration::ZERO;
        let host_permit = host.permits.clone().acquire_owned().await.map_err(closed)?;
        let lane_permit = self.lanes[lane as usize].acquire().await.map_err(closed)?;
        let total_permit = self.total.acquire().await.map_err(closed)?;
        host.breaker.lock().admit(Instant::now())?;
        Ok(Permit {
            host,
            reported: false,
            _permits: (host_permit, lane_permit, total_permit),
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
        let permits = Arc::new(Semaphore::new(self.host_max));
        let host = Arc::new(Host {
            permits,
            breaker: Mutex::default(),
        });
        hosts.by_origin.insert(origin.to_owned(), host.clone());
        host
    }
}

impl Permit<'_> {
    /// Reports the verdict to the circuit breaker of the host.
    pub(crate) fn report(mut self, verdict: &Verdict) {
        self.reported = true;
        self.host.breaker.lock().report(Instant::now(), verdict);
    }
}

impl Drop for Permit<'_> {
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
