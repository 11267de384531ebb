//! No two workers send a chunk at once, and a worker without its claim sends nothing.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use herald_mesh::{Subject, TopologyConfig};
use herald_model::{Address, Channel, ChunkId, Lane, PostId, Recipients, UserKey, time::Timestamp};
use herald_proto::mesh_v1;
use herald_push::Config;
use herald_store::{Ledger, Result, Settlement};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::Notify,
};

use crate::{
    forward_ledger::forward_ledger,
    harness::{Herald, Published, local, numbers, until},
};

/// An endpoint that takes some time for each request.
struct SlowEndpoint {
    address: String,
    requests: Arc<Mutex<HashMap<String, usize>>>,
}

impl SlowEndpoint {
    async fn start(time: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(HashMap::new()));
        let counted = requests.clone();
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let counted = counted.clone();
                tokio::spawn(async move {
                    let mut head = vec![0; 16_384];
                    let read = connection.read(&mut head).await.unwrap_or(0);
                    let line = String::from_utf8_lossy(&head[..read]);
                    let Some(path) = line.split(' ').nth(1) else {
                        return;
                    };
                    *counted.lock().entry(path.to_owned()).or_default() += 1;
                    tokio::time::sleep(time).await;
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                    let _ = connection.write_all(answer).await;
                });
            }
        });
        Self { address, requests }
    }

    /// Users with a webhook at this endpoint.
    async fn users(&self, herald: &Herald, count: usize) -> Vec<UserKey> {
        let mut users = Vec::new();
        for number in 0..count {
            let user = herald.user(&format!("user-{number}")).await;
            let address = Address::Webhook {
                url: format!("http://{}/{user}", self.address),
                secret: vec![1; 24],
            };
            let devices = &herald.stores.devices;
            devices.register(user, address, Timestamp::now()).await.unwrap();
            users.push(user);
        }
        users.sort_unstable();
        users
    }

    /// Number of requests in all.
    fn count(&self) -> usize {
        self.requests.lock().values().sum()
    }

    fn assert_each_once(&self, users: usize) {
        let requests = self.requests.lock();
        assert_eq!(requests.len(), users);
        assert!(requests.values().all(|count| *count == 1), "{requests:?}");
    }
}

/// Publishes a chunk's message again, as a redelivery to another worker.
async fn publish_again(herald: &Herald, chunk: Published, id: &str) {
    let stream = herald_mesh::streams::PUSH;
    let message = herald
        .mesh
        .message(stream, chunk.sequence)
        .await
        .unwrap()
        .unwrap();
    let message: mesh_v1::PushChunk = message.decode().unwrap();
    let subject = Subject::PushDeliver(Lane::Normal);
    herald.mesh.publish(subject, Some(id), &message).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_with_the_same_chunk_at_once_send_each_push_once() {
    let config = Config {
        // Slow enough that the copies come in the middle.
        sends_per_host_max: 20,
        settle_interval_ms: 50,
        ..local()
    };
    let mut herald = Herald::prepare(config, TopologyConfig::default()).await;
    let endpoint = SlowEndpoint::start(Duration::from_millis(50)).await;
    let users = endpoint.users(&herald, 200).await;
    let post = herald.post("hello").await;
    let chunk = herald.push(post, &users).await;
    for copy in 0..5 {
        publish_again(&herald, chunk, &format!("copy {copy}")).await;
    }
    let mut workers = Vec::new();
    for _ in 0..3 {
        herald.serve();
        workers.extend(herald.service.take());
    }
    assert_eq!(numbers(herald.settled(chunk).await), [200, 0, 0, 0, 0]);
    endpoint.assert_each_once(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chunk_of_a_dead_worker_is_taken_over_when_its_lease_ends() {
    let mut topology = TopologyConfig::default();
    // Waiting spends no attempt.
    topology.consumers.push.attempts_max = 2;
    let mut herald = Herald::prepare(local(), topology).await;
    let user = herald.user("a").await;
    herald.webhook(user, "a").await;
    let post = herald.post("hello").await;
    let chunk = herald.push(post, &[user]).await;
    let id = Recipients::from_sorted([user]).chunk_id();
    let lease = Duration::from_secs(3);
    let claimed_at = Instant::now();
    let ledger = &herald.stores.ledger;
    ledger.claim(post, Channel::Push, id, 0, lease).await.unwrap();
    herald.serve();
    until(async || !herald.received().is_empty()).await;
    let took = claimed_at.elapsed();
    assert!(took >= lease, "sent after {took:?}, while the claim lasted");
    assert!(took < lease + Duration::from_secs(3), "sent only after {took:?}");
    assert_eq!(numbers(herald.settled(chunk).await), [1, 0, 0, 0, 0]);
    assert_eq!(herald.received()["a"], 1);
    assert!(herald.reasons().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_lease_ran_out_sends_nothing_more() {
    let config = Config {
        // All pushes but one wait for their turn.
        sends_per_host_max: 1,
        claim_lease_ms: 1_000,
        settle_interval_ms: 10_000,
        ..local()
    };
    let mut herald = Herald::prepare(config, TopologyConfig::default()).await;
    let slow = Arc::new(SlowLedger {
        ledger: herald.stores.ledger.clone(),
        claim_delay: Duration::ZERO,
        hangs: AtomicBool::new(true),
        calls: AtomicUsize::new(0),
        healed: Notify::new(),
    });
    herald.stores.ledger = slow.clone();
    let endpoint = SlowEndpoint::start(Duration::from_millis(100)).await;
    let users = endpoint.users(&herald, 40).await;
    let post = herald.post("hello").await;
    herald.serve();
    let chunk = herald.push(post, &users).await;
    // The first extension hangs, as it does in a paused worker.
    until(async || slow.calls.load(Ordering::SeqCst) > 0).await;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let sent = endpoint.count();
    assert!(
        (1..=15).contains(&sent),
        "{sent} of 40 sent in a lease of a second"
    );
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(endpoint.count(), sent, "sent after the end of the lease");

    slow.hangs.store(false, Ordering::SeqCst);
    slow.healed.notify_waiters();
    assert_eq!(numbers(herald.settled(chunk).await), [40, 0, 0, 0, 0]);
    endpoint.assert_each_once(40);
}

/// Answers that come after the end of the lease, as from a store that is overloaded for long.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_slower_than_the_lease_gets_a_longer_one() {
    let config = Config {
        claim_lease_ms: 500,
        ..local()
    };
    let mut topology = TopologyConfig::default();
    // Waiting spends no attempt.
    topology.consumers.push.attempts_max = 2;
    let mut herald = Herald::prepare(config, topology).await;
    herald.stores.ledger = Arc::new(SlowLedger {
        ledger: herald.stores.ledger.clone(),
        claim_delay: Duration::from_millis(1_200),
        hangs: AtomicBool::new(false),
        calls: AtomicUsize::new(0),
        healed: Notify::new(),
    });
    let endpoint = SlowEndpoint::start(Duration::from_millis(1)).await;
    let users = endpoint.users(&herald, 20).await;
    let post = herald.post("hello").await;
    herald.serve();
    let chunk = herald.push(post, &users).await;
    assert_eq!(numbers(herald.settled(chunk).await), [20, 0, 0, 0, 0]);
    endpoint.assert_each_once(20);
    assert!(herald.reasons().await.is_empty());
}

/// A record that was written although its call failed is recognised: nothing is sent again.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_answer_was_lost_is_not_a_conflict() {
    let config = Config {
        sends_per_host_max: 4,
        settle_interval_ms: 100,
        ..local()
    };
    let mut herald = Herald::prepare(config, TopologyConfig::default()).await;
    let deaf = Arc::new(LosesAnswers {
        ledger: herald.stores.ledger.clone(),
        settlements: AtomicUsize::new(0),
    });
    herald.stores.ledger = deaf.clone();
    let endpoint = SlowEndpoint::start(Duration::from_millis(50)).await;
    let users = endpoint.users(&herald, 40).await;
    let post = herald.post("hello").await;
    herald.serve();
    let chunk = herald.push(post, &users).await;
    assert_eq!(numbers(herald.settled(chunk).await), [40, 0, 0, 0, 0]);
    endpoint.assert_each_once(40);
    assert!(deaf.settlements.load(Ordering::SeqCst) >= 4);
}

/// A ledger that answers claims late, and whose extensions of claims hang while `hangs`.
struct SlowLedger {
    ledger: Arc<dyn Ledger>,
    claim_delay: Duration,
    hangs: AtomicBool,
    calls: AtomicUsize,
    healed: Notify,
}

/// A ledger of which every second settlement is written and fails all the same.
struct LosesAnswers {
    ledger: Arc<dyn Ledger>,
    settlements: AtomicUsize,
}

impl SlowLedger {
    async fn extend(&self) {
        let healed = self.healed.notified();
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.hangs.load(Ordering::SeqCst) {
            healed.await;
        }
    }
}

forward_ledger!(SlowLedger, {
    async fn claim(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
        base: u64,
        lease: Duration,
    ) -> Result<u64> {
        let claimed = self.ledger.claim(post, channel, chunk, base, lease).await;
        tokio::time::sleep(self.claim_delay).await;
        claimed
    }

    async fn settle(&self, settlement: &Settlement) -> Result<u64> {
        self.ledger.settle(settlement).await
    }

    async fn extend_claim(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
        revision: u64,
        lease: Duration,
    ) -> Result<()> {
        self.extend().await;
        let extended = self.ledger.extend_claim(post, channel, chunk, revision, lease);
        extended.await
    }
});

forward_ledger!(LosesAnswers, {
    async fn claim(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
        base: u64,
        lease: Duration,
    ) -> Result<u64> {
        self.ledger.claim(post, channel, chunk, base, lease).await
    }

    async fn settle(&self, settlement: &Settlement) -> Result<u64> {
        let settled = self.ledger.settle(settlement).await?;
        let number = self.settlements.fetch_add(1, Ordering::SeqCst);
        if number.is_multiple_of(2) {
            let kind = herald_store::ErrorKind::Unavailable;
            return Err(herald_store::Error::new(kind, "the answer was lost"));
        }
        Ok(settled)
    }

    async fn extend_claim(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
        revision: u64,
        lease: Duration,
    ) -> Result<()> {
        let extended = self.ledger.extend_claim(post, channel, chunk, revision, lease);
        extended.await
    }
});
