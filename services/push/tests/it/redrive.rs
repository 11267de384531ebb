//! Redriven chunks.

use std::collections::HashMap;

use herald_mesh::{
    consumers::{self, ConsumerKind},
    streams,
};
use herald_push_sink::InjectedFailure;

use crate::harness::{Herald, numbers, until};

fn reject(times: u32) -> InjectedFailure {
    InjectedFailure {
        status: 400.try_into().unwrap(),
        retry_after: None,
        times: Some(times),
    }
}

#[tokio::test]
async fn a_redrive_sends_to_dead_recipients_only() {
    let herald = Herald::start().await;
    let [a, b, c] = [
        herald.user("a").await,
        herald.user("b").await,
        herald.user("c").await,
    ];
    herald.webhook(a, "a").await;
    herald.webhook(b, "b").await;
    herald.webhook(c, "c").await;
    herald.sink.fail("b", reject(1));
    herald.sink.fail("c", reject(2));
    let post = herald.post("hello").await;
    let chunk = herald.push(post, &[a, b, c]).await;
    assert_eq!(numbers(herald.settled(chunk).await), [1, 0, 0, 0, 2]);

    let consumer = consumers::redrive(ConsumerKind::Push);
    for (round, expected) in [(1, [2, 0, 0, 0, 1]), (2, [3, 0, 0, 0, 0]), (3, [3, 0, 0, 0, 0])] {
        let sequence = herald.redrive(chunk, round).await;
        until(async || herald.mesh.ack_floor(streams::REDRIVE, consumer).await.unwrap() >= sequence).await;
        assert_eq!(numbers(herald.counts(post).await), expected, "round {round}");
    }
    let once = |name: &str| (name.to_owned(), 1);
    assert_eq!(herald.received(), HashMap::from(["a", "b", "c"].map(once)));
    // Terminated the first time and in the first redrive; the other redrives were acknowledged.
    assert_eq!(herald.reasons().await.len(), 2);
    let last = herald.events().await.pop().unwrap();
    assert_eq!((last.delivered_count, last.dead_count), (3, 0));
    // Only the consumer of the push service received the redrives.
    for kind in ConsumerKind::ALL
        .into_iter()
        .filter(|kind| *kind != ConsumerKind::Push)
    {
        let consumer = consumers::redrive(kind);
        assert_eq!(herald.mesh.pending(streams::REDRIVE, consumer).await.unwrap(), 0);
        assert_eq!(herald.mesh.last_sequence(streams::PUSH).await.unwrap(), 1);
    }
}

/// During a redrive the dead recipients are pending; one that is refused again is dead again.
#[tokio::test]
async fn a_recipient_that_fails_again_is_dead_again() {
    let herald = Herald::start().await;
    let user = herald.user("a").await;
    herald.webhook(user, "a").await;
    herald.sink.fail("a", reject(2));
    let post = herald.post("hello").await;
    let chunk = herald.push(post, &[user]).await;
    assert_eq!(numbers(herald.settled(chunk).await), [0, 0, 0, 0, 1]);
    herald.redrive(chunk, 1).await;
    until(async || herald.reasons().await.len() == 2).await;
    assert_eq!(numbers(herald.counts(post).await), [0, 0, 0, 0, 1]);
}
