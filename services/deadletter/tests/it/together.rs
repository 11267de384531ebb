//! Letters that travel together.

use std::time::Duration;

use async_nats::jetstream;
use herald_mesh::{Delivery, Settle, streams};
use herald_proto::v1::{DeadLetterState, RedriveDeadLettersRequest, RedriveState};
use herald_store::LetterId;

use crate::harness::{Client, Harness, Verdict, all, everything, in_state, redrive, until};

fn letter_of(delivery: &Delivery) -> u64 {
    delivery.redrive.map_or(0, |redriven| redriven.letter)
}

/// Begins a redrive of everything, and doesn't wait for its end.
pub(crate) async fn begin(client: &Client) {
    let request = RedriveDeadLettersRequest {
        selection: Some(everything()),
        ..Default::default()
    };
    let progress = client.clone().redrive_dead_letters(request).await.unwrap();
    progress.into_inner().message().await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_fail_are_open_again_and_the_others_done() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    harness.fill(client, 1..=100).await;
    harness.tell(Verdict::By(|delivery| {
        if letter_of(delivery).is_multiple_of(10) {
            Settle::term("no")
        } else {
            Settle::Ack
        }
    }));
    let done = redrive(client, everything(), Some(0)).await.unwrap();
    assert_eq!(
        (done.state(), done.resolved_count, done.failed_count),
        (RedriveState::Done, 90, 10)
    );
    let failed: Vec<u64> = (1..=10).map(|ten| ten * 10).collect();
    assert_eq!(in_state(client, DeadLetterState::Open).await, failed);
    let letters = all(client).await;
    assert_eq!(letters.len(), 100);
    assert!(
        letters
            .iter()
            .filter(|letter| failed.contains(&letter.letter_id))
            .all(|letter| letter.reason == "no" && letter.redrive_count == 1)
    );
    // Two batches, and those that left them.
    assert_eq!(harness.mesh.last_sequence(streams::REDRIVE).await.unwrap(), 12);
    let expected: Vec<_> = (1..=100).map(|id| (id, 1)).collect();
    assert_eq!(harness.redriven(), expected, "each was tried once");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_waits_for_another_attempt_is_not_done_with_the_others() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    harness.fill(client, 1..=20).await;
    harness.tell(Verdict::By(|delivery| {
        if letter_of(delivery) == 5 && delivery.attempt == 1 {
            Settle::retry_after(Duration::from_secs(5), "not yet")
        } else {
            Settle::Ack
        }
    }));
    begin(client).await;
    until(async || in_state(client, DeadLetterState::Resolved).await.len() == 19).await;
    assert_eq!(in_state(client, DeadLetterState::Redriving).await, [5]);
    let place = async || {
        let letters = harness.stores.letters.get(&[LetterId(5)]).await.unwrap();
        letters[0].as_ref().unwrap().redrive_sequence
    };
    assert_eq!(place().await, 2, "it is by itself");
    // Known to the next process too.
    service.abort().await;
    let service = harness.run().await;
    assert_eq!(in_state(&service.client, DeadLetterState::Redriving).await, [5]);
    until(async || in_state(&service.client, DeadLetterState::Resolved).await.len() == 20).await;
    assert_eq!(harness.redriven().len(), 21);
    service.stop().await;
}

/// Its worker died each time, or could not send them by themselves.
#[tokio::test(flavor = "multi_thread")]
async fn those_of_a_batch_that_was_given_up_are_sent_by_themselves() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    harness.fill(client, 1..=10).await;
    let done = redrive(client, everything(), None).await.unwrap();
    assert_eq!(done.resolved_count, 10);
    assert_eq!(harness.mesh.last_sequence(streams::REDRIVE).await.unwrap(), 1);
    harness.advise("REDRIVE", "redrive-push", 1, None).await;
    until(async || harness.redriven().len() == 20).await;
    assert_eq!(harness.mesh.last_sequence(streams::REDRIVE).await.unwrap(), 11);
    let handled = async || {
        let floor = harness.mesh.ack_floor(streams::ADVISORIES, "deadletter").await;
        floor.unwrap() == 1
    };
    until(handled).await;
    assert_eq!(all(client).await.len(), 10, "a batch makes no letter");
    assert_eq!(harness.mesh.last_sequence(streams::DLQ).await.unwrap(), 10);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_of_a_batch_that_was_removed_are_open_again() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let client = &service.client;
    harness.fill(client, 1..=10).await;
    harness.stop_worker();
    begin(client).await;
    let sent = async || {
        let ids: Vec<_> = (1..=10).map(LetterId).collect();
        let letters = harness.stores.letters.get(&ids).await.unwrap();
        letters
            .iter()
            .flatten()
            .all(|letter| letter.redrive_sequence == 1)
    };
    until(sent).await;
    let jetstream = jetstream::new(harness.nats.clone());
    let stream = jetstream.get_stream(streams::REDRIVE).await.unwrap();
    assert!(stream.delete_message(1).await.unwrap());
    let reason = "Unacknowledged message was deleted";
    harness.advise("REDRIVE", "redrive-push", 1, Some(reason)).await;
    until(async || in_state(client, DeadLetterState::Open).await.len() == 10).await;
    let letters = all(client).await;
    assert_eq!(letters.len(), 10);
    assert!(
        letters
            .iter()
            .all(|letter| letter.reason == reason && letter.redrive_count == 1),
        "{letters:#?}"
    );
    service.stop().await;
}
