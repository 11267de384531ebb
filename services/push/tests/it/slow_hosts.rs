//! Hosts that respond late or never delay no push to another host.

use std::time::{Duration, Instant};

use herald_mesh::{TopologyConfig, streams};
use herald_model::{Address, UserKey, time::Timestamp};
use herald_push::Config;
use herald_push_sink::Running;
use tokio::net::TcpListener;

use crate::harness::{Herald, local, until};

/// The promise for a push to a host that responds.
const PROMISE: Duration = Duration::from_secs(5);

/// Registers devices at this base URL.
async fn devices(herald: &Herald, count: usize, url: &str, secret: &[u8]) -> Vec<UserKey> {
    let mut users = Vec::new();
    for n in 0..count {
        let user = herald.user(&format!("at {url} {n:04}")).await;
        let address = Address::Webhook {
            url: format!("{url}-{n:04}"),
            secret: secret.to_vec(),
        };
        let devices = &herald.stores.devices;
        devices.register(user, address, Timestamp::now()).await.unwrap();
        users.push(user);
    }
    users
}

/// Posts to the `slow` users and to one innocent user, one post a second, and checks when the innocent one is served.
async fn check_promise(herald: &Herald, slow: &[UserKey], posts: u32, ttl: Duration) {
    let innocent = herald.user("innocent").await;
    herald.webhook(innocent, "innocent").await;
    let mut second = tokio::time::interval(Duration::from_secs(1));
    for _ in 0..posts {
        second.tick().await;
        let post = herald.post("for the slow").await;
        let expires_at = Timestamp::now().plus(ttl);
        herald.push_until(post, slow, expires_at).await;
        let post = herald.post("for the innocent").await;
        herald.push(post, &[innocent]).await;
    }
    let published = Instant::now();
    herald.sink.wait_for(posts.into()).await;
    assert!(published.elapsed() < PROMISE, "{:?}", published.elapsed());
    let latency = herald.sink.summary().latency_ms.max;
    assert!(latency < PROMISE.as_secs_f64() * 1e3, "{latency} ms");
}

fn few_chunks() -> Config {
    Config {
        chunks_in_flight_max: 4,
        ..local()
    }
}

#[tokio::test]
async fn hundreds_of_devices_at_a_slow_host_delay_no_other_host() {
    const DEVICES: usize = 600;
    const POSTS: u32 = 10;
    let herald = Herald::start_with(few_chunks(), TopologyConfig::default()).await;
    let host = Running::start().await.unwrap();
    host.delay_responses(Duration::from_secs(9));
    let webhook = host.webhook("slow");
    let slow = devices(&herald, DEVICES, &webhook.url, &webhook.secret_bytes).await;
    let ttl = Duration::from_secs(20);
    check_promise(&herald, &slow, POSTS, ttl).await;
    // All are delivered or expired, and nothing is sent twice.
    let mut totals = [0; 3];
    for post in 1..=u64::from(POSTS) {
        let post = herald_model::PostId(2 * post - 1);
        until(async || herald.counts(post).await.pending == 0).await;
        let counts = herald.counts(post).await;
        totals[0] += counts.delivered;
        totals[1] += counts.expired;
        totals[2] += counts.dead;
    }
    let received = host.summary();
    assert_eq!(received.duplicates, 0);
    assert_eq!(totals[0] + totals[1], DEVICES as u64 * u64::from(POSTS));
    assert_eq!((totals[0], totals[2]), (received.received, 0));
    assert!(
        received.received >= 12,
        "a slow host gets its share: {received:?}"
    );
    // The waits get longer, so the copies are few: 1, 2, 4, 8, 16 s, and those for requests that have ended.
    let copies = herald.mesh.last_sequence(streams::PUSH).await.unwrap() - 2 * u64::from(POSTS);
    assert!(
        copies <= 12 * u64::from(POSTS),
        "{copies} copies of {POSTS} chunks"
    );
}

/// Nothing is known about the hosts before their first requests time out.
#[tokio::test]
async fn hosts_that_hang_delay_no_other_host() {
    let herald = Herald::start_with(few_chunks(), TopologyConfig::default()).await;
    let mut listeners = Vec::new();
    let mut slow = Vec::new();
    for _ in 0..8 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hangs", listener.local_addr().unwrap());
        slow.extend(devices(&herald, 100, &url, &[1; 24]).await);
        listeners.push(listener);
    }
    slow.sort_unstable();
    check_promise(&herald, &slow, 15, Duration::from_hours(1)).await;
}
