//! Admission control: limits the requests in flight in total and per host, each shared by the lanes, and blocks hosts
//! whose circuit breaker is open.
//!
//! *Invariant:* a push waits for its host only for a bounded time, and holds nothing meanwhile that a push to another
//! host needs. Slow hosts have a small share of the requests in flight, each alone and all together.

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
    time::timeout,
};

use crate::{
    Config,
    domain::{Breaker, Pace, Speed, Verdict},
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
    /// Of all slow hosts together.
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

/// The permits of a host, and of the slow hosts if it is one.
type HostPermits = (Permits, Option<Permits>, Option<Permits>);

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

    /// Waits for a permit: for one of the host up to `host_wait`, or for as long as it takes without it.
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
            (None, Some(_)) if host.is_busy(lane) => Err(NotAdmitted::Busy),
            (None, Some(wait)) => timeout(wait, acquiring).await.map_err(|_| {
                host.mark_busy(lane);
                NotAdmitted::Busy
            }),
        }
    }

    /// A host that becomes fast meanwhile needs no permit of the smaller limit.
    async fn acquire_host(&self, host: &Host, lane: Lane) -> Result<HostPermits, AcquireError> {
        let permits = host.sends.acquire(lane).await?;
        let mut pace = host.pace.subscribe();
        let slow = async {
            let host_permits = host.slow_sends.acquire(lane).await?;
            let is_slow = *host.pace.borrow() == Pace::Slow;
            let all_permits = if is_slow {
                Some(self.slow_sends.acquire(lane).await?)
            } else {
                None
            };
            Ok((Some(host_permits), all_permits))
        };
        let (host_permits, all_permits) = tokio::select! {
            biased;
            // The host owns the sender, so the wait can't fail.
            _ = pace.wait_for(|pace| *pace == Pace::Fast) => (None, None),
            acquired = slow => acquired?,
        };
        Ok((permits, host_permits, all_permits))
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

    fn mark_busy(&self, lane: Lane) {
        let is_slow = *self.pace.borrow() == Pace::Slow;
        let time = if is_slow { BUSY_FOR_SLOW } else { BUSY_FOR };
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
mod tests {
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
        let acquire = |host| admission.acquire(Lane::High, host, None).now_or_never();
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
        let acquire = |lane| admission.acquire(lane, "https://a", None).now_or_never();
        let take = |lane| std::iter::from_fn(|| acquire(lane)).collect::<Vec<_>>();
        let low = take(Lane::Low);
        let normal = take(Lane::Normal);
        assert_eq!((low.len(), normal.len()), (2, 6));
        drop(normal);
        let mut waiting = std::pin::pin!(admission.acquire(Lane::Low, "https://a", None));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert_eq!(
            take(Lane::High).len(),
            6,
            "a waiting push of the low lane takes no permit"
        );
        // A push that waits for a permit of a full host holds none of the other hosts'.
        let mut full = std::pin::pin!(admission.acquire(Lane::Low, "https://a", None));
        assert!(full.as_mut().now_or_never().is_none());
        let other = admission.acquire(Lane::Low, "https://b", None).now_or_never();
        assert!(other.unwrap().is_ok());
    }

    #[test]
    fn the_low_lane_leaves_capacity_for_the_high_lane() {
        let admission = admission(8, 8);
        let low: Vec<_> = (0..2)
            .map(|_| {
                admission
                    .acquire(Lane::Low, "https://a", None)
                    .now_or_never()
                    .unwrap()
            })
            .collect();
        assert!(
            admission
                .acquire(Lane::Low, "https://a", None)
                .now_or_never()
                .is_none()
        );
        assert!(
            admission
                .acquire(Lane::High, "https://a", None)
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
                .acquire(Lane::High, "https://a", None)
                .now_or_never()
                .unwrap()
                .unwrap()
                .report(&timeout, false);
        }
        assert!(
            admission
                .acquire(Lane::High, "https://a", None)
                .now_or_never()
                .unwrap()
                .is_err()
        );
        assert!(
            admission
                .acquire(Lane::High, "https://b", None)
                .now_or_never()
                .unwrap()
                .is_ok()
        );
    }

    async fn until_busy(admission: &Admission, host: &str) -> Vec<Permit> {
        let mut permits = Vec::new();
        loop {
            // Without it, tokio makes a task that is never pending wait.
            tokio::task::yield_now().await;
            match admission.acquire(Lane::High, host, Some(Duration::ZERO)).await {
                Ok(permit) => permits.push(permit),
                Err(NotAdmitted::Busy) => return permits,
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_host_has_a_small_share_until_it_is_fast() {
        let admission = admission(64, 32);
        let mut unknown = until_busy(&admission, "https://a").await;
        assert_eq!(unknown.len(), 16, "nothing is known about the host");
        unknown.pop().unwrap().report(&Verdict::Accepted, true);
        let mut fast = until_busy(&admission, "https://a").await;
        fast.extend(unknown);
        assert_eq!(fast.len(), 32);
        for permit in fast.iter_mut().take(16) {
            permit.report_slow();
        }
        drop(fast);
        let slow = until_busy(&admission, "https://a").await;
        assert_eq!(slow.len(), 16);
        for permit in slow {
            permit.report(&Verdict::Accepted, true);
        }
        assert_eq!(until_busy(&admission, "https://a").await.len(), 32);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_hosts_together_leave_half_to_the_others() {
        let admission = admission(64, 32);
        let mut held = Vec::new();
        for n in 0..8 {
            let host = format!("https://slow-{n}");
            let first = admission.acquire(Lane::High, &host, None).await;
            first.unwrap().report_slow();
            held.extend(until_busy(&admission, &host).await);
        }
        assert_eq!(held.len(), 32);
        let permit = admission.acquire(Lane::High, "https://new", None).now_or_never();
        assert!(permit.unwrap().is_ok());
    }

    /// The first push that waits in vain spares the others the wait.
    #[tokio::test(start_paused = true)]
    async fn a_push_leaves_a_busy_host_after_its_wait() {
        let admission = admission(64, 1);
        let wait = Some(Duration::from_secs(2));
        let acquire = |wait| admission.acquire(Lane::High, "https://a", wait);
        let held = acquire(wait).await.unwrap();
        let before = tokio::time::Instant::now();
        assert_eq!(acquire(wait).await.unwrap_err(), NotAdmitted::Busy);
        assert_eq!(before.elapsed(), Duration::from_secs(2));
        assert_eq!(
            acquire(wait).now_or_never().unwrap().unwrap_err(),
            NotAdmitted::Busy
        );
        let mut patient = pin!(acquire(None));
        assert!(
            patient.as_mut().now_or_never().is_none(),
            "it waits for as long as it takes"
        );
        drop(held);
        assert!(patient.now_or_never().unwrap().is_ok());
        assert!(
            acquire(wait).now_or_never().unwrap().is_ok(),
            "a free permit needs no wait"
        );
    }

    #[test]
    fn idle_hosts_are_evicted() {
        let admission = admission(8, 8);
        let used = admission
            .acquire(Lane::High, "https://used", None)
            .now_or_never()
            .unwrap()
            .unwrap();
        for host in 0..3 * HOSTS_MAX {
            drop(
                admission
                    .acquire(Lane::High, &format!("https://{host}"), None)
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
