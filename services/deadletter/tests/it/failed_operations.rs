//! Operations and dead letters whose steps fail.

use std::sync::Arc;

use herald_proto::v1::{self, DeadLetterOperationState, DeadLetterState};
use herald_store::ErrorKind;
use tonic::Code;

use crate::harness::{
    Client, Harness, Running, dlq_entry,
    failing_store::{Behavior, FailingDeadLetters},
    in_state, redrive, select_all, until,
};

/// A service with `count` open dead letters.
async fn start(count: u64) -> (Harness, Running, Arc<FailingDeadLetters>) {
    let mut harness = Harness::start().await;
    let store = FailingDeadLetters::new(harness.stores.dead_letters.clone());
    harness.stores.dead_letters = store.clone();
    let service = harness.run().await;
    harness.create_dead_letters(&service.client, 1..=count).await;
    (harness, service, store)
}

async fn discard_all(client: &Client) -> Result<v1::DiscardDeadLettersResponse, tonic::Status> {
    let request = v1::DiscardDeadLettersRequest {
        selection: Some(select_all()),
        ..Default::default()
    };
    let discarded = client.clone().discard_dead_letters(request).await?;
    Ok(discarded.into_inner())
}

/// The last operation of the audit log.
async fn last_operation(client: &Client) -> v1::DeadLetterOperation {
    let request = v1::ListOperationsRequest::default();
    let log = client.clone().list_operations(request).await.unwrap();
    log.into_inner().operations.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discard_that_failed_goes_on_when_the_store_works_again() {
    let (harness, service, store) = Box::pin(start(300)).await;
    let client = &service.client;
    let unavailable = Behavior::Fail(ErrorKind::Unavailable);
    store.set_behaviors([Behavior::Succeed, unavailable, unavailable]);
    let error = discard_all(client).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert_eq!(
        error.message(),
        "the store is not available; operation 1 has discarded 128 of 300 dead letters, the server discards the others \
         in the background"
    );
    until(async || in_state(client, DeadLetterState::Discarded).await.len() == 300).await;
    until(async || harness.stores.dead_letters.running().await.unwrap().is_empty()).await;
    let operation = last_operation(client).await;
    assert_eq!(
        (operation.state(), operation.discarded_count),
        (DeadLetterOperationState::Done, 300)
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_waits_for_a_store_that_is_away() {
    let (harness, service, store) = Box::pin(start(1)).await;
    store.set_away(true);
    let author = harness.author().await;
    for sequence in [2, 3] {
        harness
            .publish_dead_letter(&dlq_entry(author, sequence), &sequence.to_string())
            .await;
    }
    // Both have failed more than once.
    until(async || store.failed_inserts() >= 6).await;
    assert_eq!(harness.metric("herald_deadletter_waiting"), 2);
    store.set_away(false);
    let client = &service.client;
    until(async || in_state(client, DeadLetterState::Open).await.len() == 3).await;
    until(async || harness.metric("herald_deadletter_waiting") == 0).await;
    let broker = async_nats::jetstream::new(harness.nats.clone());
    let stream = broker.get_stream("DLQ").await.unwrap();
    let info = stream.consumer_info("dead-letters").await.unwrap();
    assert_eq!(
        info.delivered.consumer_sequence, 3,
        "a message was delivered again"
    );

    // A shutdown returns it at once.
    store.set_away(true);
    harness.publish_dead_letter(&dlq_entry(author, 4), "4").await;
    until(async || store.failed_inserts() > 0).await;
    service.stop().await;
    store.set_away(false);
    let service = harness.run().await;
    until(async || in_state(&service.client, DeadLetterState::Open).await.len() == 4).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permanent_error_stops_a_discard() {
    let (harness, service, store) = Box::pin(start(300)).await;
    let client = &service.client;
    let corrupt = Behavior::Fail(ErrorKind::Corrupt);
    store.set_behaviors([Behavior::Succeed, corrupt, corrupt]);
    let error = discard_all(client).await.unwrap_err();
    assert!(
        error
            .message()
            .ends_with("operation 1 has discarded 128 of 300 dead letters, the others stay open"),
        "{error:?}"
    );
    until(async || harness.stores.dead_letters.running().await.unwrap().is_empty()).await;
    let operation = last_operation(client).await;
    assert_eq!(operation.state(), DeadLetterOperationState::Stopped);
    assert_eq!(operation.reason, "failed: the store failed: failed on purpose");
    assert_eq!(in_state(client, DeadLetterState::Open).await.len(), 172);
    service.stop().await;

    // The next process doesn't resume it.
    let service = harness.run().await;
    let client = &service.client;
    let done = redrive(client, select_all(), None).await.unwrap();
    assert_eq!((done.selected_count, done.resolved_count), (172, 172));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permanent_error_or_a_panic_stops_a_redrive() {
    let (harness, service, store) = Box::pin(start(5)).await;
    let client = &service.client;
    for (behavior, reason) in [
        (
            Behavior::Fail(ErrorKind::Corrupt),
            "failed: the store failed: failed on purpose",
        ),
        (Behavior::Panic, "failed: panic: on purpose"),
    ] {
        store.set_behaviors([behavior]);
        let stopped = redrive(client, select_all(), None).await.unwrap();
        assert_eq!(
            (stopped.state(), &stopped.reason[..]),
            (DeadLetterOperationState::Stopped, reason)
        );
        assert_eq!((stopped.sent_count, stopped.in_flight_count), (0, 0));
        assert!(stopped.end_time.is_some());
    }
    assert_eq!(harness.stores.dead_letters.running().await.unwrap(), []);
    // A transient error delays a redrive.
    store.set_behaviors([Behavior::Fail(ErrorKind::Unavailable)]);
    let done = redrive(client, select_all(), None).await.unwrap();
    assert_eq!(
        (done.state(), done.resolved_count),
        (DeadLetterOperationState::Done, 5)
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_that_a_panicking_redrive_had_claimed_are_sent_at_once() {
    let (harness, service, store) = Box::pin(start(5)).await;
    let client = &service.client;
    store.set_behaviors([Behavior::PanicAfterwards]);
    let stopped = redrive(client, select_all(), None).await.unwrap();
    assert_eq!(
        (stopped.state(), &stopped.reason[..]),
        (
            DeadLetterOperationState::Stopped,
            "failed: panic: afterwards, on purpose"
        )
    );
    assert_eq!((stopped.resolved_count, stopped.in_flight_count), (5, 0));
    assert_eq!(harness.redriven(), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]);
    service.stop().await;
}
