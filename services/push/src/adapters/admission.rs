//! Who may send now: so many at once, so many to one host, so many of a lane, and none to a host that keeps failing.

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

/// Hosts that nothing is sent to are forgotten when there are more than this.
const HOSTS_KEPT: usize = 1_024;

/// The gates of all hosts.
#[derive(Debug)]
pub(crate) struct Gates {
    all: Semaphore,
    lanes: [Semaphore; Lane::ALL.len()],
    host_max: usize,
    hosts: Mutex<Hosts>,
}

#[derive(Debug)]
struct Hosts {
    by_origin: HashMap<String, Arc<Host>>,
    sweep_at: usize,
}

#[derive(Debug)]
struct Host {
    permits: Arc<Semaphore>,
    breaker: Mutex<Breaker>,
}

/// The right to send one request.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    host: Arc<Host>,
    reported: bool,
    _permits: (OwnedSemaphorePermit, SemaphorePermit<'a>, SemaphorePermit<'a>),
}

impl Gates {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            all: Semaphore::new(config.sends_max),
            lanes: Lane::ALL.map(|lane| Semaphore::new(config.lane_sends_max(lane))),
            host_max: config.sends_per_host_max,
            hosts: Mutex::new(Hosts {
                by_origin: HashMap::new(),
                sweep_at: HOSTS_KEPT,
            }),
        }
    }

    /// Waits for a turn. The error says how long the host is to be left alone.
    ///
    /// The host's permit comes first: whoever waits for a slow host holds nothing that others need.
    pub(crate) async fn enter(&self, lane: Lane, origin: &str) -> Result<Pass<'_>, Duration> {
        let host = self.host(origin);
        if let Some(wait) = host.breaker.lock().wait(Instant::now()) {
            return Err(wait);
        }
        // The semaphores are never closed.
        let closed = |_| Duration::ZERO;
        let of_host = host.permits.clone().acquire_owned().await.map_err(closed)?;
        let of_lane = self.lanes[lane as usize].acquire().await.map_err(closed)?;
        let of_all = self.all.acquire().await.map_err(closed)?;
        host.breaker.lock().admit(Instant::now())?;
        Ok(Pass {
            host,
            reported: false,
            _permits: (of_host, of_lane, of_all),
        })
    }

    fn host(&self, origin: &str) -> Arc<Host> {
        let mut hosts = self.hosts.lock();
        if let Some(host) = hosts.by_origin.get(origin) {
            return host.clone();
        }
        if hosts.by_origin.len() >= hosts.sweep_at {
            let now = Instant::now();
            hosts
                .by_origin
                .retain(|_, host| Arc::strong_count(host) > 1 || host.breaker.lock().wait(now).is_some());
            // A sweep that finds little must not come again at once.
            hosts.sweep_at = HOSTS_KEPT.max(2 * hosts.by_origin.len());
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

impl Pass<'_> {
    /// Tells the host's breaker what came of the request.
    pub(crate) fn report(mut self, verdict: &Verdict) {
        self.reported = true;
        self.host.breaker.lock().report(Instant::now(), verdict);
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if !self.reported {
            self.host.breaker.lock().withdraw();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::domain::Reason;

    fn gates(sends_max: usize, sends_per_host_max: usize) -> Gates {
        Gates::new(&Config {
            sends_max,
            sends_per_host_max,
            ..Config::default()
        })
    }

    #[test]
    fn a_full_host_keeps_nobody_else_waiting() {
        let gates = gates(8, 2);
        let enter = |host| gates.enter(Lane::High, host).now_or_never();
        let first = enter("https://a").unwrap().unwrap();
        let _second = enter("https://a").unwrap().unwrap();
        assert!(enter("https://a").is_none());
        let _other = enter("https://b").unwrap().unwrap();
        drop(first);
        assert!(enter("https://a").is_some());
    }

    #[test]
    fn the_low_lane_leaves_room_for_the_high_one() {
        let gates = gates(8, 8);
        let low: Vec<_> = (0..2)
            .map(|_| gates.enter(Lane::Low, "https://a").now_or_never().unwrap())
            .collect();
        assert!(gates.enter(Lane::Low, "https://a").now_or_never().is_none());
        assert!(
            gates
                .enter(Lane::High, "https://a")
                .now_or_never()
                .unwrap()
                .is_ok()
        );
        drop(low);
    }

    #[test]
    fn a_host_that_keeps_failing_is_left_alone() {
        let gates = gates(8, 8);
        let timeout = Verdict::Later {
            reason: Reason::Timeout,
            after: None,
        };
        for _ in 0..16 {
            gates
                .enter(Lane::High, "https://a")
                .now_or_never()
                .unwrap()
                .unwrap()
                .report(&timeout);
        }
        assert!(
            gates
                .enter(Lane::High, "https://a")
                .now_or_never()
                .unwrap()
                .is_err()
        );
        assert!(
            gates
                .enter(Lane::High, "https://b")
                .now_or_never()
                .unwrap()
                .is_ok()
        );
    }

    #[test]
    fn hosts_without_a_use_are_forgotten() {
        let gates = gates(8, 8);
        let used = gates
            .enter(Lane::High, "https://used")
            .now_or_never()
            .unwrap()
            .unwrap();
        for host in 0..3 * HOSTS_KEPT {
            drop(
                gates
                    .enter(Lane::High, &format!("https://{host}"))
                    .now_or_never()
                    .unwrap()
                    .unwrap(),
            );
        }
        let hosts = gates.hosts.lock();
        assert!(hosts.by_origin.len() <= HOSTS_KEPT);
        assert!(hosts.by_origin.contains_key("https://used"));
        drop(used);
    }
}
