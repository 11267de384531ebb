//! Nothing is sent whose outcome can't be recorded, and nobody waits for what is left of a response.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use herald_mesh::TopologyConfig;
use herald_model::{Address, Channel, ChunkId, PostId, time::Timestamp};
use herald_push::Config;
use herald_store::{Error, ErrorKind, Ledger, Result, Settlement};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    forward_ledger::forward_ledger,
    harness::{Herald, local, numbers, until},
};

/// A ledger that can be read, and not written while `broken`: the disk is short, or read-only.
struct ReadOnly {
    ledger: Arc<dyn Ledger>,
    broken: AtomicBool,
    refused: AtomicUsize,
}

impl ReadOnly {
    fn check(&self) -> Result<()> {
        if !self.broken.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.refused.fetch_add(1, Ordering::SeqCst);
        Err(Error::new(ErrorKind::Full, "the disk is full"))
    }
}

forward_ledger!(ReadOnly, {
    async fn settle(&self, settlement: &Settlement) -> Result<u64> {
        self.check()?;
        self.ledger.settle(settlement).await
    }

    async fn claim(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
        base: u64,
        lease: Duration,
    ) -> Result<u64> {
        self.check()?;
        self.ledger.claim(post, channel, chunk, base, lease).await
    }

    async fn extend_claim(
        &self,
        post: PostId,
        channel: Channel,
        chunk: ChunkId,
        revision: u64,
        lease: Duration,
    ) -> Result<()> {
        self.check()?;
        let extended = self.ledger.extend_claim(post, channel, chunk, revision, lease);
        extended.await
    }
});

#[tokio::test]
async fn nothing_is_sent_while_the_ledger_cannot_be_written() {
    let mut herald = Herald::prepare(local(), TopologyConfig::default()).await;
    let read_only = Arc::new(ReadOnly {
        ledger: herald.stores.ledger.clone(),
        broken: AtomicBool::new(true),
        refused: AtomicUsize::new(0),
    });
    herald.stores.ledger = read_only.clone();
    let user = herald.user("a").await;
    herald.webhook(user, "a").await;
    herald.serve();
    let post = herald.post("hello").await;
    let chunk = herald.push(post, &[user]).await;
    until(async || read_only.refused.load(Ordering::SeqCst) >= 5).await;
    assert!(herald.received().is_empty());
    read_only.broken.store(false, Ordering::SeqCst);
    assert_eq!(numbers(herald.settled(chunk).await), [1, 0, 0, 0, 0]);
    assert_eq!(herald.received()["a"], 1);
}

/// The status line settles a push. The body of the first response never ends; with one request at a time to the host,
/// the second push would wait for the request's timeout of a minute.
#[tokio::test]
async fn a_response_body_that_never_ends_holds_no_slot() {
    let config = Config {
        sends_per_host_max: 1,
        request_timeout_ms: 60_000,
        ..local()
    };
    let herald = Herald::start_with(config, TopologyConfig::default()).await;
    let endpoint = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let [a, b] = [herald.user("a").await, herald.user("b").await];
    for user in [a, b] {
        let address = Address::Webhook {
            url: format!("http://{}/{user}", endpoint.local_addr().unwrap()),
            secret: vec![1; 24],
        };
        let devices = &herald.stores.devices;
        devices.register(user, address, Timestamp::now()).await.unwrap();
    }
    let post = herald.post("hello").await;
    let chunk = herald.push(post, &[a, b]).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let (mut connection, _) = endpoint.accept().await.unwrap();
        let mut request = [0; 1_024];
        assert!(connection.read(&mut request).await.unwrap() > 0);
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n";
        connection.write_all(head).await.unwrap();
        open.push(connection);
    }
    assert_eq!(numbers(herald.settled(chunk).await), [2, 0, 0, 0, 0]);
}
