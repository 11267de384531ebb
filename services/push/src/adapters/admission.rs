//! Admission control: limits the requests in flight in total and per host, each shared by the lanes, and blocks hosts
//! whose circuit breaker is open.
//!
//! *Invariant:* a push waits for a host that isn't fast only for a bounded time, and holds nothing meanwhile that a push
//! to another host needs. Such hosts have a small share of the requests in flight, each alone and all together.

use std::{
    collections::HashMap,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt;
use herald_model::Lane;
use parking_lot::Mutex;
use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore, watch},
    time::sleep,
};

use crate::{
    Config,
    domain::{Breaker, BreakerCounts, Pace, Speed, Verdict},
};

/// Number of hosts from which on idle hosts are evicted.
const HOSTS_MAX: usize = 1_024;

/// Time for which no more pushes queue for a host after one has waited in vain.
const BUSY_FOR: Duration = Duration::from_secs(1);

/// The same for a host that is slow.
const BUSY_FOR_SLOW: Duration = Duration::from_secs(5);

/// The limits of all requests.
#[derive(Debug)]
pub(crate) struct Admission {
    sends: Limit,
    /// Of all hosts together that aren't fast.
    slow_sends: Limit,
    host_max: usize,
    slow_host_max: usize,
    hosts: Mutex<Hosts>,
}

/// Why a request is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotAdmitted {
    /// The circuit breaker of the host is open for this time.
    Open(Duration),
    /// The host has its share of the requests in flight.
    Busy,
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
    /// The smaller limit unless the host is fast.
    slow_sends: Limit,
    breaker: Mutex<Breaker>,
    speed: Mutex<Speed>,
    pace: watch::Sender<Pace>,
    /// By lane: until when no push queues for a permit.
    busy_until: Mutex<[Option<Instant>; Lane::ALL.len()]>,
}

/// The permits of a host, and the smaller ones unless it is fast: its own, and that of all such hosts.
type HostPermits = (Permits, Option<(Permits, Permits)>);

/// Permission to send one request. Dropped without a report, it leaves the circuit breaker as if no request was sent.
#[derive(Debug)]
pub(crate) struct Permit {
    host: Arc<Host>,
    slow: bool,
    reported: bool,
    _permits: (HostPermits, Permits),
}

impl Admission {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            sends: Limit::new(config.sends_max),
            slow_sends: Limit::new((config.sends_max / 2).max(1)),
            host_max: config.sends_per_host_max,
            slow_host_max: config.sends_per_slow_host_max,
            hosts: Mutex::new(Hosts {
                by_origin: HashMap::new(),
                evict_at: HOSTS_MAX,
            }),
        }
    }

    /// Waits for a permit: for one of the host up to `host_wait`, or for as long as it takes without it, and while the
    /// host is fast: its requests end soon, and a push that left would be out of sight of those who watch the queue.
    ///
    /// The permits of the host are acquired first, so that a request waiting for a slow host holds no permit that
    /// requests to other hosts need.
    pub(crate) async fn acquire(
        &self,
        lane: Lane,
        origin: &str,
        host_wait: Option<Duration>,
    ) -> Result<Permit, NotAdmitted> {
        let host = self.host(origin);
        if let Some(wait) = host.breaker.lock().open_for(Instant::now()) {
            return Err(NotAdmitted::Open(wait));
        }
        // The semaphores are never closed.
        let closed = |_| NotAdmitted::Busy;
        let host_permits = self
            .wait_for_host(&host, lane, host_wait)
            .await?
            .map_err(closed)?;
        let permits = self.sends.acquire(lane).await.map_err(closed)?;
        host.breaker
            .lock()
            .admit(Instant::now())
            .map_err(NotAdmitted::Open)?;
        Ok(Permit {
            host,
            slow: false,
            reported: false,
            _permits: (host_permits, permits),
        })
    }

    /// Waits for the permits of the host, unless pushes wait there in vain.
    async fn wait_for_host(
        &self,
        host: &Host,
        lane: Lane,
        host_wait: Option<Duration>,
    ) -> Result<Result<HostPermits, AcquireError>, NotAdmitted> {
        let mut acquiring = pin!(self.acquire_host(host, lane));
        match (acquiring.as_mut().now_or_never(), host_wait) {
            (Some(permits), _) => Ok(permits),
            (None, None) => Ok(acquiring.await),
            (None, Some(_)) if !host.is_fast() && host.is_busy(lane) => Err(NotAdmitted::Busy),
            (None, Some(wait)) => {
                let mut pace = host.pace.subscribe();
                let waited = async {
                    // The host owns the sender, so the wait can't fail.
                    _ = pace.wait_for(|pace| *pace != Pace::Fast).await;
                    sleep(wait).await;
                };
                tokio::select! {
                    biased;
                    permits = acquiring => Ok(permits),
                    () = waited => {
                        host.mark_busy(lane);
                        Err(NotAdmitted::Busy)
                    }
                }
            }
        }
    }

    /// A host that becomes fast meanwhile needs no permit of the smaller limits.
    async fn acquire_host(&self, host: &Host, lane: Lane) -> Result<HostPermits, AcquireError> {
        let permits = host.sends.acquire(lane).await?;
        let mut pace = host.pace.subscribe();
        let slow = async {
            let host_permits = host.slow_sends.acquire(lane).await?;
            Ok((host_permits, self.slow_sends.acquire(lane).await?))
        };
        let slow_permits = tokio::select! {
            biased;
            // The host owns the sender, so the wait can't fail.
            _ = pace.wait_for(|pace| *pace == Pace::Fast) => None,
            acquired = slow => Some(acquired?),
        };
        Ok((permits, slow_permits))
    }

    /// How many hosts have a breaker that is not closed.
    pub(crate) fn breakers(&self) -> BreakerCounts {
        let hosts: Vec<_> = self.hosts.lock().by_origin.values().cloned().collect();
        let now = Instant::now();
        let mut counts = BreakerCounts::default();
        for host in hosts {
            let breaker = host.breaker.lock();
            counts.open += usize::from(breaker.open_for(now).is_some());
            counts.half_open += usize::from(breaker.is_half_open(now));
        }
        counts
    }

    fn host(&self, origin: &str) -> Arc<Host> {
        let mut hosts = self.hosts.lock();
        if let Some(host) = hosts.by_origin.get(origin) {
            return host.clone();
        }
        if hosts.by_origin.len() >= hosts.evict_at {
            let now = Instant::now();
            let is_needed =
                |host: &Arc<Host>| Arc::strong_count(host) > 1 || host.breaker.lock().open_for(now).is_some();
            hosts
                .by_origin
                .retain(|_, host| host.is_slow() || is_needed(host));
            // That a host is slow is forgotten only when nothing else can be.
            let mut excess = (hosts.by_origin.len() + 1).saturating_sub(HOSTS_MAX);
            hosts.by_origin.retain(|_, host| {
                let is_kept = excess == 0 || is_needed(host);
                excess -= usize::from(!is_kept);
                is_kept
            });
            // Double the threshold, so that an eviction that frees little does not run at every new host.
            hosts.evict_at = HOSTS_MAX.max(2 * hosts.by_origin.len());
        }
        let host = Arc::new(Host {
            sends: Limit::new(self.host_max),
            slow_sends: Limit::new(self.slow_host_max),
            breaker: Mutex::default(),
            speed: Mutex::default(),
            pace: watch::Sender::new(Pace::Unknown),
            busy_until: Mutex::default(),
        });
        hosts.by_origin.insert(origin.to_owned(), host.clone());
        host
    }
}

impl Host {
    /// Whether a push of the lane has waited in vain a short time ago.
    fn is_busy(&self, lane: Lane) -> bool {
        self.busy_until.lock()[lane as usize].is_some_and(|until| Instant::now() < until)
    }

    fn is_fast(&self) -> bool {
        *self.pace.borrow() == Pace::Fast
    }

    fn is_slow(&self) -> bool {
        *self.pace.borrow() == Pace::Slow
    }

    fn mark_busy(&self, lane: Lane) {
        let time = if self.is_slow() { BUSY_FOR_SLOW } else { BUSY_FOR };
        self.busy_until.lock()[lane as usize] = Some(Instant::now() + time);
    }

    fn change_speed(&self, change: impl FnOnce(&mut Speed)) {
        let mut speed = self.speed.lock();
        change(&mut speed);
        let now = speed.pace();
        self.pace
            .send_if_modified(|pace| std::mem::replace(pace, now) != now);
    }
}

impl Permit {
    /// Reports that the request has no response yet, after the time of a slow one.
    pub(crate) fn report_slow(&mut self) {
        self.slow = true;
        self.host.change_speed(Speed::count_slow);
    }

    /// Reports the verdict to the circuit breaker of the host, and whether it is that of a response.
    pub(crate) fn report(mut self, verdict: &Verdict, is_response: bool) {
        self.reported = true;
        if is_response && !self.slow {
            self.host.change_speed(Speed::count_fast);
        }
        self.host
            .breaker
            .lock()
            .report(Instant::now(), verdict, self.slow);
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
mod tests;
