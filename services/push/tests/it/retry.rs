//! Retries after failed sends, crashes and conflicts.

use std::{collections::HashMap, time::Duration};

use futures::FutureExt;
use herald_mesh::{TopologyConfig, streams};
use herald_model::{Address, Channel, Recipients, time::Timestamp};
use herald_push::Config;
use herald_push_sink::InjectedFailure;
use herald_store::{ExpectedRevision, Outcome, OutcomeDetails, PendingRecipient, Settlement};
use tokio::io::AsyncWriteExt as _;

use crate::harness::{Herald, local, numbers};

fn failure(status: u16, times: Option<u32>) -> InjectedFailure {
    InjectedFailure {
        status: status.try_into().unwrap(),
        retry_after: None,
        times,
    }
}

#[tokio::test]
async fn a_retry_sends_to_pending_devices_only() {
    let herald = Herald::start().await;
    let [a, b] = [herald.user("a").await, herald.user("b").await];
    herald.webhook(a, "a-working").await;
    herald.browser(a, "a-failing").await;
    herald.webhook(b, "b-working").await;
    herald.sink.fail("a-failing", failure(503, Some(3)));
    let post = herald.post("hello").await;
    let chunk = herald.push(post, &[a, b]).await;
    assert_eq!(numbers(herald.settled(chunk).await), [2, 0, 0, 0, 0]);
    let once = |name: &str| (name.to_owned(), 1);
    assert_eq!(
        herald.received(),
        HashMap::from(["a-working", "a-failing", "b-working"].map(once))
    );
    let summary = herald.sink.summary();
    assert_eq!((summary.duplicates, summary.failed), (0, 3));
    let delivered: Vec<u32> = herald
        .events()
        .await
        .iter()
        .map(|event| event.delivered_count)
        .collect();
    assert_eq!(delivered, [1, 2]);
}

#[tokio::test]
async fn the_retry_after_of_a_provider_is_honoured() {
    let herald = Herald::start().await;
    let user = herald.user("a").await;
    herald.webhook(user, "hook").await;
    let wait = Duration::from_secs(1);
    herald.sink.fail(
        "hook",
        InjectedFailure {
            retry_after: Some(wait),
            ..failure(429, Some(1))
        },
    );
    let post = herald.post("hello").await;
    let chunk = herald.push(post, &[user]).await;
    herald.sink.wait_for_failed(1).await;
    let failed_at = Timestamp::now();
    assert_eq!(numbers(herald.settled(chunk).await), [1, 0, 0, 0, 0]);
    let received = Timestamp(herald.sink.entries()[0].received_time.as_microsecond());
    assert!(
        received.since(failed_at) >= wait * 9 / 10,
        "{:?}",
        received.since(failed_at)
    );
}

#[tokio::test]
async fn a_device_that_no_longer_exists_is_unregistered() {
    let herald = Herald::start().await;
    let [a, b] = [herald.user("a").await, herald.user("b").await];
    herald.browser(a, "gone").await;
    herald.browser(b, "gone-too").await;
    let stays = herald.webhook(b, "stays").await;
    herald.sink.fail("gone", failure(410, None));
    herald.sink.fail("gone-too", failure(404, None));
    let post = herald.post("hello").await;
    let chunk = herald.push(post, &[a, b]).await;
    assert_eq!(numbers(herald.settled(chunk).await), [1, 1, 0, 0, 0]);
    let devices = herald.stores.devices.of(&[a, b]).await.unwrap();
    assert_eq!(devices, [vec![], vec![stays]]);
}

#[tokio::test]
async fn a_permanent_error_is_not_retried() {
    let herald = Herald::start().await;
    let [a, b] = [herald.user("a").await, herald.user("b").await];
    herald.webhook(a, "refuses").await;
    herald.webhook(b, "b-refuses").await;
    herald.webhook(b, "b-accepts").await;
    herald.sink.fail("refuses", failure(400, None));
    herald.sink.fail("b-refuses", failure(403, None));
    let post = herald.post("hello").await;
    let chunk = herald.push(post, &[a, b]).await;
    assert_eq!(numbers(herald.settled(chunk).await), [1, 0, 0, 0, 1]);
    assert_eq!(herald.sink.summary().failed, 2);
    // The message is terminated, which makes a dead letter, before the last attempt.
    let reasons = herald.reasons().await;
    assert_eq!(reasons.len(), 1);
    assert!(
        reasons[0].contains("push failed: webhook status 400: 1"),
        "{reasons:?}"
    );
}

/// Without the delay queue, the consumer holds the message, and each wait spends an attempt.
#[tokio::test]
async fn without_the_delay_queue_a_recipient_is_dead_after_the_last_attempt() {
    let mut topology = TopologyConfig::default();
    topology.consumers.push.attempts_max = 3;
    let mut herald = Herald::prepare(local(), topology).await;
    herald.disable_delay_queue();
    herald.serve();
    let [a, b] = [herald.user("a").await, herald.user("b").await];
    herald.webhook(a, "failing").await;
    herald.webhook(b, "b-failing").await;
    herald.webhook(b, "b-working").await;
    herald.sink.fail("failing", failure(500, None));
    herald.sink.fail("b-failing", failure(500, None));
    let post = herald.post("hello").await;
    let chunk = herald.push(post, &[a, b]).await;
    assert_eq!(numbers(herald.settled(chunk).await), [1, 0, 0, 0, 1]);
    assert_eq!(herald.received(), HashMap::from([("b-working".to_owned(), 1)]));
    assert!(herald.sink.summary().failed >= 2);
    assert_eq!(herald.mesh.last_sequence(streams::LATER).await.unwrap(), 0);
    let reasons = herald.reasons().await;
    assert_eq!(reasons.len(), 1);
    assert!(
        reasons[0].contains("push failed: webhook status 500: 1"),
        "{reasons:?}"
    );
    let metrics = herald.metrics.open_metrics();
    assert!(
        metrics.contains(r#"herald_push_chunks_total{lane="normal",result="terminated"} 1"#),
        "{metrics}"
    );
}

/// A crash between the ledger record and the event.
#[tokio::test]
async fn recorded_pushes_are_not_sent_again_and_are_in_the_event() {
    let mut herald = Herald::prepare(local(), TopologyConfig::default()).await;
    let [a, b, c] = [
        herald.user("a").await,
        herald.user("b").await,
        herald.user("c").await,
    ];
    herald.webhook(a, "a").await;
    let first = herald.webhook(b, "b-first").await;
    herald.webhook(b, "b-second").await;
    herald.webhook(c, "c").await;
    let post = herald.post("hello").await;
    let chunk = herald.push(post, &[a, b, c]).await;
    let outcome = Outcome::Mixed {
        delivered: Recipients::from_sorted([a]),
        suppressed: Recipients::default(),
        expired: Recipients::default(),
        dead: Recipients::default(),
        details: OutcomeDetails {
            pending: vec![PendingRecipient {
                user: b,
                done: vec![first.id],
                waiting: Vec::new(),
                failed: Vec::new(),
            }],
            ..OutcomeDetails::default()
        },
    };
    let settlement = Settlement {
        post,
        channel: Channel::Push,
        chunk: Recipients::from_sorted([a, b, c]).chunk_id(),
        base: ExpectedRevision::Revision(0),
        outcome,
        at: Timestamp::now(),
        keep_claim: None,
    };
    herald.stores.ledger.settle(&settlement).await.unwrap();
    assert_eq!(numbers(herald.counts(post).await), [1, 0, 0, 2, 0]);

    herald.serve();
    assert_eq!(numbers(herald.settled(chunk).await), [3, 0, 0, 0, 0]);
    let once = |name: &str| (name.to_owned(), 1);
    assert_eq!(herald.received(), HashMap::from(["b-second", "c"].map(once)));
    let events: Vec<(u64, u32)> = herald
        .events()
        .await
        .iter()
        .map(|event| (event.revision, event.delivered_count))
        .collect();
    // The claim is revision 2.
    assert_eq!(events, [(3, 3)]);
}

/// A worker that stalled until another worker had settled its chunk.
#[tokio::test]
async fn the_record_of_another_worker_is_not_overwritten() {
    let herald = Herald::start().await;
    let user = herald.user("a").await;
    let slow = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::Webhook {
        url: format!("http://{}/", slow.local_addr().unwrap()),
        secret: vec![1; 24],
    };
    herald
        .stores
        .devices
        .register(user, address, Timestamp::now())
        .await
        .unwrap();
    let post = herald.post("hello").await;
    herald.push(post, &[user]).await;
    let (mut connection, _) = slow.accept().await.unwrap();
    let outcome = Outcome::Mixed {
        delivered: Recipients::default(),
        suppressed: Recipients::from_sorted([user]),
        expired: Recipients::default(),
        dead: Recipients::default(),
        details: OutcomeDetails::default(),
    };
    let settlement = Settlement {
        post,
        channel: Channel::Push,
        chunk: Recipients::from_sorted([user]).chunk_id(),
        // The claim of the first worker.
        base: ExpectedRevision::Revision(1),
        outcome,
        at: Timestamp::now(),
        keep_claim: None,
    };
    herald.stores.ledger.settle(&settlement).await.unwrap();
    connection
        .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
        .await
        .unwrap();
    crate::harness::until(async || {
        let metrics = herald.metrics.open_metrics();
        metrics.contains(r#"herald_push_chunks_total{lane="normal",result="retried"} 1"#)
    })
    .await;
    assert_eq!(numbers(herald.counts(post).await), [0, 1, 0, 0, 0]);
    assert!(herald.events().await.is_empty());
}

/// The ledger has the progress while other recipients of the chunk are in flight.
#[tokio::test]
async fn progress_is_recorded_while_a_chunk_is_in_flight() {
    let herald = Herald::start().await;
    let [a, b] = [herald.user("a").await, herald.user("b").await];
    herald.webhook(a, "fast").await;
    // The listener never responds, so the send takes until its timeout.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let address = Address::Webhook {
        url,
        secret: vec![1; 24],
    };
    herald
        .stores
        .devices
        .register(b, address, Timestamp::now())
        .await
        .unwrap();
    let post = herald.post("hello").await;
    herald.push(post, &[a, b]).await;
    crate::harness::until(async || herald.counts(post).await.delivered == 1).await;
    assert_eq!(numbers(herald.counts(post).await), [1, 0, 0, 1, 0]);
}

/// Queued sends are dropped once the post is deleted.
#[tokio::test]
async fn a_deletion_stops_queued_sends() {
    let config = Config {
        sends_per_host_max: 1,
        request_timeout_ms: 2_000,
        settle_interval_ms: 20,
        ..local()
    };
    let herald = Herald::start_with(config, TopologyConfig::default()).await;
    let [a, b] = [herald.user("a").await, herald.user("b").await];
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    for user in [a, b] {
        let url = format!("http://{}/{user}", silent.local_addr().unwrap());
        let address = Address::Webhook {
            url,
            secret: vec![1; 24],
        };
        herald
            .stores
            .devices
            .register(user, address, Timestamp::now())
            .await
            .unwrap();
    }
    let post = herald.post("oops").await;
    herald.archive(post, "oops").await;
    let chunk = herald.push(post, &[a, b]).await;
    let _first = silent.accept().await.unwrap();
    herald.delete(post).await;
    assert_eq!(numbers(herald.settled(chunk).await), [0, 2, 0, 0, 0]);
    assert!(silent.accept().now_or_never().is_none());
}
