//! A recipient that causes a permanent error does not block the other recipients of the chunk.

use herald_mesh::{Subject, consumers, streams};
use herald_model::{Lane, PostId};
use herald_proto::mesh_v1::Backfill;
use herald_store::Outcome;

use crate::{
    faulty::Fault,
    harness::{World, until, users, with_corrupt_outcome},
};

const POST: PostId = PostId(7);

async fn check_isolation(fault: Fault, error: &str) {
    let world = World::start().await;
    world.timelines.fail(fault, &[30, 31, 999]);
    let all = users(1..=1_000);
    let sequence = world.publish(POST, &all).await;
    let consumer = consumers::timeline(Lane::Normal);
    world.settled(streams::TIMELINE, consumer, sequence).await;

    let counts = world.counts(POST).await;
    assert_eq!((counts.delivered, counts.dead, counts.pending), (997, 3, 0));
    let Some(Outcome::Mixed { dead, .. }) = world.outcome(POST, &all).await.map(|r| r.outcome) else {
        panic!("the outcome is not mixed")
    };
    assert_eq!(dead, users([30, 31, 999]));
    let with_post = world.users_with(POST, &all).await;
    assert!(
        with_post
            .into_iter()
            .eq((1..=1_000).filter(|u| ![30, 31, 999].contains(u)))
    );
    // Two attempts at the whole chunk; the third attempt bisects it.
    assert!(
        (20..60).contains(&world.timelines.failed()),
        "{}",
        world.timelines.failed()
    );
    let reasons = world.reasons().await;
    assert_eq!(reasons.len(), 1);
    let reason = format!("{error} (for 3 of 1000 recipients, isolated)");
    assert!(reasons[0].contains(&reason), "{reasons:?}");
    let event = world.last_event().await;
    assert_eq!(
        (event.delivered_count, event.dead_count, event.revision),
        (997, 3, 1)
    );

    // A redrive after the repair delivers to all recipients.
    world.timelines.heal();
    let chunk = world.plan(POST, &all).await;
    world.redrive(sequence, &chunk).await;
    assert_eq!(world.users_with(POST, &all).await.len(), 1_000);
    let counts = world.counts(POST).await;
    assert_eq!((counts.delivered, counts.dead, counts.pending), (1_000, 0, 0));
    let event = world.last_event().await;
    assert_eq!(
        (event.delivered_count, event.dead_count, event.revision),
        (1_000, 0, 2)
    );
    assert_eq!(world.reasons().await.len(), 1);
}

#[tokio::test]
async fn a_recipient_that_makes_the_store_panic_is_isolated() {
    check_isolation(Fault::Panic, "panic: unexpected row").await;
}

#[tokio::test]
async fn a_recipient_with_a_corrupt_timeline_is_isolated() {
    check_isolation(Fault::Corrupt, "a timeline is malformed").await;
}

#[tokio::test]
async fn an_unavailable_store_is_retried() {
    let world = World::start().await;
    world.timelines.fail(Fault::Unavailable, &[30]);
    let all = users(1..=1_000);
    let sequence = world.publish(POST, &all).await;
    until(async || world.timelines.failed() >= 6).await;
    assert_eq!(world.outcome(POST, &all).await, None);
    world.timelines.heal();
    let consumer = consumers::timeline(Lane::Normal);
    world.settled(streams::TIMELINE, consumer, sequence).await;
    let recorded = world.outcome(POST, &all).await.unwrap();
    assert_eq!(recorded.outcome, Outcome::Delivered { count: 1_000 });
    assert!(world.reasons().await.is_empty());
}

/// A repair has read the ledger before the outcome was recorded: the chunk is delivered again before its message is
/// acknowledged.
#[tokio::test]
async fn a_delivery_that_was_lost_before_its_outcome_was_recorded_is_repeated() {
    let world = World::start().await;
    world.timelines.lose(2);
    let all = users(1..=3);
    let sequence = world.publish(POST, &all).await;
    let consumer = consumers::timeline(Lane::Normal);
    world.settled(streams::TIMELINE, consumer, sequence).await;
    assert_eq!(world.timelines.delivered(), 3);
    let recorded = world.outcome(POST, &all).await.unwrap();
    assert_eq!(recorded.outcome, Outcome::Delivered { count: 3 });
    assert!(world.reasons().await.is_empty());
}

/// Every timeline is corrupt: all recipients are marked dead, in one dead letter.
#[tokio::test]
async fn a_chunk_that_fails_for_every_recipient_makes_one_dead_letter() {
    let world = World::start().await;
    world.timelines.fail(Fault::Corrupt, &[1, 2, 3]);
    let all = users([1, 2, 3]);
    let sequence = world.publish(POST, &all).await;
    let consumer = consumers::timeline(Lane::Normal);
    world.settled(streams::TIMELINE, consumer, sequence).await;
    let counts = world.counts(POST).await;
    assert_eq!((counts.delivered, counts.dead), (0, 3));
    assert_eq!(world.reasons().await.len(), 1);
}

/// The outcome of the chunk can't be recorded because its ledger row is corrupt: only this chunk is terminated.
#[tokio::test]
async fn a_chunk_with_a_corrupt_outcome_is_terminated_and_blocks_no_other_chunk() {
    let (corrupt, intact) = (users([1, 2, 3]), users([1, 2, 3, 4]));
    let world = World::start_in(with_corrupt_outcome(POST, &corrupt)).await;
    world.publish(POST, &corrupt).await;
    // Another chunk of the same post, and the same recipients of another post.
    world.publish(POST, &intact).await;
    let last = world.publish(PostId(8), &corrupt).await;
    let consumer = consumers::timeline(Lane::Normal);
    world.settled(streams::TIMELINE, consumer, last).await;
    let reasons = world.reasons().await;
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    let reason = "the store failed: a row of the ledger is malformed (attempt 10, permanent error)";
    assert!(reasons[0].contains(reason), "{reasons:?}");
    for (post, users) in [(POST, &intact), (PostId(8), &corrupt)] {
        let recorded = world.outcome(post, users).await.unwrap();
        let count = users.len();
        assert_eq!(
            (recorded.outcome, recorded.revision),
            (Outcome::Delivered { count }, 1)
        );
    }
    // The recipients of the terminated chunk have the post too.
    assert_eq!(world.users_with(POST, &corrupt).await, [1, 2, 3]);
}

/// The import of a follow graph makes backfills with many followers.
#[tokio::test]
async fn a_backfill_isolates_recipients_with_a_permanent_error() {
    let world = World::start().await;
    world.archive(POST).await;
    world.timelines.fail(Fault::Corrupt, &[30]);
    let all = users(1..=100);
    let request = Backfill {
        author_key: 9,
        recipients: all.as_bytes().clone(),
        recipient_count: all.len(),
        posts_sequence: POST.0,
    };
    let subject = Subject::TimelineBackfill(Lane::Low);
    let sequence = world
        .mesh
        .publish(subject, None, &request)
        .await
        .unwrap()
        .sequence;
    let consumer = consumers::timeline(Lane::Low);
    world.settled(streams::TIMELINE, consumer, sequence).await;
    let with_post = world.users_with(POST, &all).await;
    assert!(with_post.into_iter().eq((1..=100).filter(|user| *user != 30)));
    let reasons = world.reasons().await;
    assert!(
        reasons[0].contains("(for 1 of 100 recipients, isolated)"),
        "{reasons:?}"
    );
    // The ledger records the backfill for all recipients, the failed one included.
    let plan = world.stores.ledger.audit(POST).await.unwrap().unwrap();
    assert!(plan.backfilled.contains(&all));
}
