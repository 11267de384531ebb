use super::*;
use crate::domain::Reason;

fn admission(sends_max: usize, sends_per_host_max: usize) -> Admission {
    Admission::new(&Config {
        sends_max,
        sends_per_host_max,
        ..Config::default()
    })
}

fn make_fast(admission: &Admission, host: &str) {
    let permit = admission.acquire(Lane::High, host, None).now_or_never();
    permit.unwrap().unwrap().report(&Verdict::Accepted, true);
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
    make_fast(&admission, "https://a");
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
        match admission.acquire(Lane::High, host, None).now_or_never() {
            Some(permit) => permits.push(permit.unwrap()),
            None => return permits,
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
    make_fast(&admission, "https://fast");
    let mut held = Vec::new();
    // Half of them are slow, and half have not responded yet.
    for n in 0..8 {
        let host = format!("https://{n}");
        if n % 2 == 0 {
            let first = admission.acquire(Lane::High, &host, None).now_or_never();
            if let Some(first) = first {
                first.unwrap().report_slow();
            }
        }
        held.extend(until_busy(&admission, &host).await);
    }
    assert_eq!(held.len(), 32);
    assert_eq!(until_busy(&admission, "https://fast").await.len(), 32);
}

#[tokio::test(start_paused = true)]
async fn new_hosts_that_hang_leave_half_to_the_others() {
    let admission = admission(64, 32);
    make_fast(&admission, "https://fast");
    let mut held = Vec::new();
    for n in 0..32 {
        held.extend(until_busy(&admission, &format!("https://new-{n}")).await);
    }
    assert_eq!(held.len(), 32);
    assert_eq!(until_busy(&admission, "https://fast").await.len(), 32);
}

#[tokio::test(start_paused = true)]
async fn a_push_waits_for_a_host_as_long_as_that_is_fast() {
    let admission = admission(64, 1);
    make_fast(&admission, "https://a");
    let wait = Some(Duration::from_secs(2));
    let mut held = admission.acquire(Lane::High, "https://a", wait).await.unwrap();
    let mut waiting = pin!(admission.acquire(Lane::High, "https://a", wait));
    let an_hour = tokio::time::timeout(Duration::from_hours(1), &mut waiting).await;
    assert!(an_hour.is_err());
    for _ in 0..16 {
        held.report_slow();
    }
    let slow = tokio::time::Instant::now();
    assert_eq!(waiting.await.unwrap_err(), NotAdmitted::Busy);
    assert_eq!(slow.elapsed(), Duration::from_secs(2));
}

#[test]
fn a_slow_host_is_forgotten_last() {
    let admission = admission(8, 8);
    let acquire = |host: &str| admission.acquire(Lane::High, host, None).now_or_never();
    acquire("https://slow").unwrap().unwrap().report_slow();
    for host in 0..3 * HOSTS_MAX {
        drop(acquire(&format!("https://{host}")));
    }
    assert!(admission.host("https://slow").is_slow());
    for host in 0..3 * HOSTS_MAX {
        acquire(&format!("https://slow-{host}"))
            .unwrap()
            .unwrap()
            .report_slow();
    }
    assert!(admission.hosts.lock().by_origin.len() <= 2 * HOSTS_MAX);
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

#[test]
fn breakers_that_are_not_closed_are_counted() {
    let admission = admission(8, 8);
    let timeout = Verdict::Retry {
        reason: Reason::Timeout,
        after: None,
    };
    make_fast(&admission, "https://good");
    while admission.breakers() == BreakerCounts::default() {
        let permit = admission.acquire(Lane::High, "https://bad", None).now_or_never();
        permit.unwrap().unwrap().report(&timeout, false);
    }
    let counts = BreakerCounts {
        open: 1,
        half_open: 0,
    };
    assert_eq!(admission.breakers(), counts);
}
