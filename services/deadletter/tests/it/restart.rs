//! Redrives that are interrupted by the end of the process.

use std::time::Duration;

use futures::TryStreamExt as _;
use herald_mesh::{Redrive, Subject, consumers::ConsumerKind, streams};
use herald_model::{Lane, time::Timestamp};
use herald_proto::{
    mesh_v1::DlqEntry,
    v1::{self, DeadLetterOperationState, DeadLetterState},
};
use herald_store::{
    DeadLetterFilter, DeadLetterId, DeadLetterVersion, NewOperation, OperationId, OperationKind, Order,
};

use crate::harness::{Client, Harness, in_state, select_all, until};

async fn state(client: &Client, redrive_id: u64) -> v1::Redrive {
    let request = v1::GetRedriveRequest { redrive_id };
    let answer = client.clone().get_redrive(request).await.unwrap();
    answer.into_inner().redrive.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_resumes_after_the_process_died() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let mut client = service.client.clone();
    harness.create_dead_letters(&client, 1..=600).await;
    let request = v1::RedriveDeadLettersRequest {
        selection: Some(select_all()),
        rate_max: 1_000,
        ..Default::default()
    };
    let mut progress = client.redrive_dead_letters(request).await.unwrap().into_inner();
    let begun = progress.message().await.unwrap().unwrap().redrive.unwrap();
    until(async || harness.redriven().len() > 50).await;
    service.abort().await;
    drop(progress);
    assert!(harness.redriven().len() < 600);
    no_unrecorded_message_precedes_redrive_after(&harness, begun.redrive_id).await;

    let service = harness.run().await;
    until(async || {
        let now = state(&service.client, begun.redrive_id).await;
        now.state() == DeadLetterOperationState::Done && now.in_flight_count == 0
    })
    .await;
    let done = state(&service.client, begun.redrive_id).await;
    assert_eq!(
        (done.resolved_count, done.failed_count, done.skipped_count),
        (600, 0, 0)
    );
    let expected: Vec<_> = (1..=600).map(|id| (id, 1)).collect();
    let mut redriven = harness.redriven();
    redriven.sort_unstable();
    assert_eq!(redriven, expected);
    service.stop().await;
}

/// The messages of unrecorded dead letters are after `redrive_after`, where the next process searches. Otherwise it
/// would send them twice after the dedupe window.
async fn no_unrecorded_message_precedes_redrive_after(harness: &Harness, redrive_id: u64) {
    let dead_letters = &harness.stores.dead_letters;
    let operation = dead_letters
        .operation(OperationId(redrive_id))
        .await
        .unwrap()
        .unwrap();
    let filter = DeadLetterFilter {
        state: Some(herald_store::DeadLetterState::Redriving),
        ..DeadLetterFilter::default()
    };
    let page = dead_letters
        .scan(&filter, Order::OldestFirst, None, 600)
        .await
        .unwrap();
    let last = harness.mesh.last_sequence(streams::REDRIVE).await.unwrap();
    let messages: Vec<_> = harness
        .mesh
        .scan(streams::REDRIVE, None, 1, last)
        .try_collect()
        .await
        .unwrap();
    for dead_letter in page
        .dead_letters
        .iter()
        .filter(|dead_letter| dead_letter.redrive_sequence == 0)
    {
        let name = format!("{}/{}", dead_letter.id.0, dead_letter.round);
        for message in &messages {
            if message.header("Herald-Redrive") == Some(name.as_str()) {
                assert!(message.sequence > operation.redrive_after, "{name}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn claimed_dead_letters_that_may_have_been_sent_are_searched_in_redrive() {
    let harness = Harness::start().await;
    let service = harness.run().await;
    harness.create_dead_letters(&service.client, 1..=4).await;
    service.stop().await;

    // A process claimed three dead letters, published two of them, and died before it recorded any sequence.
    let dead_letters = &harness.stores.dead_letters;
    let chosen = (1..=4)
        .map(|id| DeadLetterVersion {
            id: DeadLetterId(id),
            round: 0,
        })
        .collect::<Vec<_>>();
    let operation = NewOperation {
        kind: OperationKind::Redrive,
        actor: "somebody".into(),
        at: Timestamp::now(),
        selection: bytes::Bytes::new(),
        excluded: 0,
        rate_max: 500,
        failures_max: 0,
        push_ttl: None,
        target: None,
    };
    let begun = dead_letters.begin(&operation, &chosen).await.unwrap();
    let leases = &harness.stores.leases;
    let fence = leases
        .acquire("redrive", "another process", Duration::from_mins(1))
        .await;
    let fence = fence.unwrap().unwrap();
    dead_letters
        .claim(begun.id, 3, 0, Timestamp::now(), &fence)
        .await
        .unwrap();
    leases.release(&fence).await.unwrap();
    for dead_letter in [1, 3] {
        let message = harness
            .mesh
            .message(streams::DLQ, dead_letter)
            .await
            .unwrap()
            .unwrap();
        let entry: DlqEntry = message.decode().unwrap();
        let redrive = Redrive {
            kind: ConsumerKind::Push,
            dead_letter,
            round: 1,
            subject: Subject::PushDeliver(Lane::Normal),
            sequence: entry.original_sequence,
            published_at: Timestamp(entry.published_at_us),
            payload: entry.payload,
            trace_parent: None,
            trace_state: None,
            // Another message id than the next process uses, as if the dedupe window were over.
            id: format!("long ago {dead_letter}"),
        };
        harness.mesh.redrive(&redrive).await.unwrap();
    }

    let service = harness.run().await;
    until(async || {
        let resolved = in_state(&service.client, DeadLetterState::Resolved).await;
        resolved.len() == 4
    })
    .await;
    assert_eq!(harness.redriven(), [(1, 1), (2, 1), (3, 1), (4, 1)]);
    let done = state(&service.client, begun.id.0).await;
    assert_eq!((done.sent_count, done.resolved_count), (4, 4));
    service.stop().await;
}
