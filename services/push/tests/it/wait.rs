//! Each device waits for its own retry, and the message of its chunk does not wait for it.

use std::{collections::HashMap, time::Duration};

use herald_mesh::{TopologyConfig, streams};
use herald_model::{Address, Channel, DeliveryState, Recipients, UserKey, time::Timestamp};
use herald_push::Config;
use herald_push_sink::InjectedFailure;
use herald_store::{
    DeviceRetry, ExpectedRevision, Outcome, OutcomeDetails, PendingRecipient, PushFailure, Settlement,
};
use tokio::net::TcpListener;

use crate::harness::{Herald, local, numbers, until};

fn failure(status: u16, times: Option<u32>) -> InjectedFailure {
    InjectedFailure {
        status: status.try_into().unwrap(),
        retry_after: None,
        times,
    }
}

fn asks(seconds: u64, times: Option<u32>) -> InjectedFailure {
    InjectedFailure {
        retry_after: Some(Duration::from_secs(seconds)),
        ..failure(429, times)
    }
}

/// One endpoint asks for minutes, another one fails twice. Nobody else waits, and each is retried on its own.
#[tokio::test]
async fn a_hostile_device_delays_no_other_recipient_of_its_chunk() {
    let herald = Herald::start().await;
    let mut users = Vec::new();
    for n in 0..64 {
        let user = herald.user(&format!("u{n:02}")).await;
        herald.webhook(user, &format!("u{n:02}")).await;
        users.push(user);
    }
    herald.sink.fail("u07", asks(300, None));
    herald.sink.fail("u09", failure(503, Some(2)));
    let post = herald.post("hello").await;
    herald.push(post, &users).await;
    until(async || numbers(herald.counts(post).await) == [63, 0, 0, 1, 0]).await;
    // Its message is done: the recipient waits in the delay queue.
    let last = herald.mesh.last_sequence(streams::PUSH).await.unwrap();
    herald.acknowledged(last).await;
    until(async || herald.delayed_count().await == 1).await;
    assert!(herald.reasons().await.is_empty());
    assert_eq!(herald.sink.summary().duplicates, 0);
    let waiting = &herald.recipients(post).await[7];
    assert_eq!(waiting.state, DeliveryState::Pending);
    let retry = &waiting.waiting[0];
    // The wait that was asked for spends no attempt.
    assert_eq!(
        (retry.attempts, &retry.failure.reason[..]),
        (0, "webhook status 429")
    );
    assert!(retry.failure.host.starts_with("127.0.0.1:"), "{retry:?}");
    assert!(retry.next_at.since(Timestamp::now()) > Duration::from_mins(4));
}

/// `Retry-After: 0`, a date in the past and a short one: the device's own back-off holds, and the message's attempts
/// are not spent.
#[tokio::test]
async fn a_short_retry_after_spends_no_attempt_of_the_message() {
    let mut topology = TopologyConfig::default();
    topology.consumers.push.attempts_max = 2;
    let herald = Herald::start_with(local(), topology).await;
    let [a, b] = [herald.user("a").await, herald.user("b").await];
    herald.webhook(a, "zero").await;
    herald.webhook(b, "none").await;
    herald.sink.fail("zero", asks(0, Some(3)));
    herald.sink.fail("none", failure(500, Some(3)));
    let post = herald.post("hello").await;
    let started = Timestamp::now();
    let chunk = herald.push(post, &[a, b]).await;
    assert_eq!(numbers(herald.settled(chunk).await), [2, 0, 0, 0, 0]);
    assert_eq!(herald.sink.summary().failed, 6);
    assert!(herald.reasons().await.is_empty());
    // Back-offs of at least half of 1, 2 and 4 seconds.
    assert!(Timestamp::now().since(started) >= Duration::from_millis(3_500));
}

#[tokio::test]
async fn a_device_is_tried_until_its_push_expires() {
    let herald = Herald::start().await;
    let user = herald.user("a").await;
    herald.webhook(user, "failing").await;
    herald.sink.fail("failing", failure(500, None));
    let post = herald.post("hello").await;
    let expires_at = Timestamp::now().plus(Duration::from_secs(4));
    let chunk = herald.push_until(post, &[user], expires_at).await;
    assert_eq!(numbers(herald.settled(chunk).await), [0, 0, 1, 0, 0]);
    assert!(Timestamp::now() >= expires_at);
    assert!(herald.sink.summary().failed >= 2);
    // Expired is not dead.
    assert!(herald.reasons().await.is_empty());
    let failures = &herald.recipients(post).await[0].failures;
    assert_eq!(failures[0].failure.reason, "webhook status 500");
    assert_eq!(herald.delayed_count().await, 0);
}

#[tokio::test]
async fn a_dead_recipient_has_a_dead_letter_while_another_waits() {
    let herald = Herald::start().await;
    let [a, b] = [herald.user("a").await, herald.user("b").await];
    let device = herald.webhook(a, "refuses").await;
    herald.webhook(b, "waits").await;
    herald.sink.fail("refuses", failure(400, None));
    herald.sink.fail("waits", asks(2, Some(1)));
    let post = herald.post("hello").await;
    let chunk = herald.push(post, &[a, b]).await;
    until(async || herald.reasons().await.len() == 1).await;
    assert_eq!(numbers(herald.counts(post).await), [0, 0, 0, 1, 1]);
    let reason = herald.reasons().await.pop().unwrap();
    assert!(
        reason.contains("push failed: webhook status 400: 1 (hosts"),
        "{reason}"
    );
    assert!(
        reason.contains(&format!("devices \\\"{}\\\"", device.id.0)),
        "{reason}"
    );
    assert_eq!(numbers(herald.settled(chunk).await), [1, 0, 0, 0, 1]);
    // The copy has no dead recipient of its own.
    assert_eq!(herald.reasons().await.len(), 1);
    assert_eq!(herald.received(), HashMap::from([("waits".to_owned(), 1)]));
}

/// A crash after the record and before the copy: the ledger has a waiting recipient of generation 1, and only the
/// message of fan-out is in flight.
#[tokio::test]
async fn the_copy_is_made_after_a_crash_between_record_and_copy() {
    let mut herald = Herald::prepare(local(), TopologyConfig::default()).await;
    let [a, b] = [herald.user("a").await, herald.user("b").await];
    herald.webhook(a, "done").await;
    let waits = herald.webhook(b, "waits").await;
    let post = herald.post("hello").await;
    let chunk = herald.push(post, &[a, b]).await;
    let next_at = Timestamp::now().plus(Duration::from_secs(2));
    let outcome = Outcome::Mixed {
        delivered: Recipients::from_sorted([a]),
        suppressed: Recipients::default(),
        expired: Recipients::default(),
        dead: Recipients::default(),
        details: OutcomeDetails {
            generation: 1,
            pending: vec![PendingRecipient {
                waiting: vec![DeviceRetry {
                    device: waits.id,
                    attempts: 1,
                    next_at,
                    failure: PushFailure::new("webhook status 503", "127.0.0.1"),
                }],
                ..PendingRecipient::new(b)
            }],
            ..OutcomeDetails::default()
        },
    };
    let settlement = Settlement {
        post,
        channel: Channel::Push,
        chunk: Recipients::from_sorted([a, b]).chunk_id(),
        base: ExpectedRevision::Revision(0),
        outcome,
        at: Timestamp::now(),
        keep_claim: None,
    };
    herald.stores.ledger.settle(&settlement).await.unwrap();
    herald.serve();
    herald.acknowledged(chunk.sequence).await;
    assert_eq!(numbers(herald.counts(post).await), [1, 0, 0, 1, 0]);
    assert_eq!(numbers(herald.settled(chunk).await), [2, 0, 0, 0, 0]);
    assert!(Timestamp::now() >= next_at);
    assert_eq!(herald.received(), HashMap::from([("waits".to_owned(), 1)]));
}

/// A redriven message whose device waits is done: a copy in PUSH continues.
#[tokio::test]
async fn a_redriven_recipient_that_waits_continues_in_push() {
    let herald = Herald::start().await;
    let user = herald.user("a").await;
    herald.webhook(user, "a").await;
    herald.sink.fail("a", failure(400, Some(1)));
    let post = herald.post("hello").await;
    let chunk = herald.push(post, &[user]).await;
    assert_eq!(numbers(herald.settled(chunk).await), [0, 0, 0, 0, 1]);
    herald.sink.fail("a", failure(503, Some(1)));
    let sequence = herald.redrive(chunk, 1).await;
    until(async || herald.redriven(sequence).await).await;
    assert_eq!(numbers(herald.counts(post).await), [0, 0, 0, 1, 0]);
    assert_eq!(numbers(herald.settled(chunk).await), [1, 0, 0, 0, 0]);
    assert_eq!(herald.mesh.last_sequence(streams::PUSH).await.unwrap(), 2);
    assert_eq!(herald.reasons().await.len(), 1);
}

/// An endpoint that accepts connections and never responds.
async fn silent_endpoint(herald: &Herald, user: UserKey) -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::Webhook {
        url: format!("http://{}/", listener.local_addr().unwrap()),
        secret: vec![1; 24],
    };
    let devices = &herald.stores.devices;
    devices.register(user, address, Timestamp::now()).await.unwrap();
    listener
}

/// A configuration under which a silent endpoint is slow for longer than a test waits.
fn patient() -> Config {
    Config {
        request_timeout_ms: 60_000,
        ..local()
    }
}

#[tokio::test]
async fn a_slow_device_delays_no_retry_of_its_chunk() {
    let herald = Herald::start_with(patient(), TopologyConfig::default()).await;
    let [a, b] = [herald.user("a").await, herald.user("b").await];
    let _silent = silent_endpoint(&herald, a).await;
    herald.webhook(b, "fails-twice").await;
    herald.sink.fail("fails-twice", failure(503, Some(2)));
    let post = herald.post("hello").await;
    herald.push(post, &[a, b]).await;
    until(async || numbers(herald.counts(post).await) == [1, 0, 0, 1, 0]).await;
    assert_eq!(herald.received(), HashMap::from([("fails-twice".to_owned(), 1)]));
    // The request to the slow device is still in flight.
    assert_eq!(herald.delayed_count().await, 0);
    assert!(herald.recipients(post).await[0].waiting.is_empty());
}

#[tokio::test]
async fn slow_devices_delay_no_other_chunk() {
    let config = Config {
        chunks_in_flight_max: 1,
        ..patient()
    };
    let herald = Herald::start_with(config, TopologyConfig::default()).await;
    let [a, b] = [herald.user("a").await, herald.user("b").await];
    let _silent = silent_endpoint(&herald, a).await;
    herald.webhook(b, "innocent").await;
    for _ in 0..4 {
        let slow = herald.post("slow").await;
        herald.push(slow, &[a]).await;
    }
    let post = herald.post("hello").await;
    herald.push(post, &[b]).await;
    until(async || numbers(herald.counts(post).await) == [1, 0, 0, 0, 0]).await;
}
