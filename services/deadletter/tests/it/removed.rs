//! Messages that are removed from REDRIVE while a worker handles them.

use async_nats::jetstream;
use herald_mesh::streams;
use herald_model::{Channel, ChunkId, PostId, Recipients, time::Timestamp};
use herald_proto::v1::DeadLetterState;
use herald_store::{DeadLetterId, ExpectedRevision, Outcome, OutcomeDetails, Settlement};

use crate::harness::{Harness, Running, Verdict, begin_redrive, dead_letters, in_state, until};

const POST: PostId = PostId(9);
const USERS: [&str; 3] = ["ann", "cid", "dan"];

/// The push deliveries of the post: delivered, pending, dead.
async fn counts(harness: &Harness) -> (u64, u64, u64) {
    let counts = harness.stores.ledger.counts(POST).await.unwrap();
    let push = counts.unwrap().push;
    (push.delivered, push.pending, push.dead)
}

/// A dead-lettered chunk is redriven: a worker has delivered it to one recipient, made the others pending again, and
/// stopped.
async fn with_partial_redrive() -> (Harness, Running) {
    let harness = Harness::start().await;
    let service = harness.run().await;
    let chunk = harness.plan(POST.0, &USERS).await;
    harness.set_verdict(Verdict::Term("no"));
    harness.publish(&chunk).await;
    dead_letters(&service.client, 1).await;
    until(async || counts(&harness).await == (0, 0, 3)).await;
    harness.stop_worker();
    begin_redrive(&service.client).await;
    until(async || {
        let dead_letters = harness.stores.dead_letters.get(&[DeadLetterId(1)]).await.unwrap();
        dead_letters[0].as_ref().unwrap().redrive_sequence == 1
    })
    .await;

    let chunk_id = ChunkId(chunk.chunk_id);
    let recorded = harness
        .stores
        .ledger
        .outcome(POST, Channel::Push, chunk_id)
        .await
        .unwrap()
        .unwrap();
    let Outcome::Mixed { dead, .. } = recorded.outcome else {
        panic!("{recorded:?}")
    };
    let settlement = Settlement {
        post: POST,
        channel: Channel::Push,
        chunk: chunk_id,
        base: ExpectedRevision::Revision(recorded.revision),
        outcome: Outcome::Mixed {
            delivered: Recipients::from_sorted(dead.iter().take(1)),
            suppressed: Recipients::default(),
            expired: Recipients::default(),
            dead: Recipients::default(),
            details: OutcomeDetails::default(),
        },
        at: Timestamp::now(),
        keep_claim: None,
    };
    harness.stores.ledger.settle(&settlement).await.unwrap();
    assert_eq!(counts(&harness).await, (1, 2, 0));
    (harness, service)
}

/// Asserts that the dead letter is open with this reason, and that the undelivered recipients are dead.
async fn assert_marked_dead_again(harness: &Harness, service: Running, reason: &str) {
    until(async || in_state(&service.client, DeadLetterState::Open).await == [1]).await;
    until(async || counts(harness).await == (1, 0, 2)).await;
    let dead_letter = dead_letters(&service.client, 1).await.remove(0);
    assert_eq!(
        (
            &*dead_letter.reason,
            dead_letter.undelivered_count,
            dead_letter.redrive_count
        ),
        (reason, 2, 1)
    );
    assert_eq!(harness.metric("herald_deadletter_failed_again_total"), 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_with_an_advisory_marks_the_chunk_dead_again() {
    let (harness, service) = Box::pin(with_partial_redrive()).await;
    let jetstream = jetstream::new(harness.nats.clone());
    let stream = jetstream.get_stream(streams::REDRIVE).await.unwrap();
    assert!(stream.delete_message(1).await.unwrap());
    let reason = "Unacknowledged message was deleted";
    harness
        .publish_advisory("REDRIVE", "redrive-push", 1, Some(reason))
        .await;
    assert_marked_dead_again(&harness, service, reason).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_without_an_advisory_marks_the_chunk_dead_again() {
    let (harness, service) = Box::pin(with_partial_redrive()).await;
    let jetstream = jetstream::new(harness.nats.clone());
    let stream = jetstream.get_stream(streams::REDRIVE).await.unwrap();
    stream.purge().await.unwrap();
    assert_marked_dead_again(
        &harness,
        service,
        "removed from REDRIVE before it was acknowledged",
    )
    .await;
}
