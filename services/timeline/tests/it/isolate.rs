//! Recipients to whom nothing can be delivered keep nobody else from theirs.

use herald_mesh::{Subject, consumers, streams};
use herald_model::{Lane, PostId};
use herald_proto::mesh_v1::Backfill;
use herald_store::Outcome;

use crate::{
    faulty::Fault,
    harness::{World, until, users, with_corrupt_outcome},
};

const POST: PostId = PostId(7);

async fn a_fault_costs_only_those_it_is_about(fault: Fault, words: &str) {
    let world = World::start().await;
    world.timelines.fail(fault, &[30, 31, 999]);
    let all = users(1..=1_000);
    let sequence = world.publish(POST, &all).await;
    let consumer = consumers::timeline(Lane::Normal);
    world.settled(streams::TIMELINE, consumer, sequence).await;

    let counts = world.counts(POST).await;
    assert_eq!((counts.delivered, counts.dead, counts.pending), (997, 3, 0));
    let Some(Outcome::Mixed { dead, .. }) = world.outcome(POST, &all).await.map(|r| r.outcome) else {
        panic!("mixed")
    };
    assert_eq!(dead, users([30, 31, 999]));
    let have = world.have(POST, &all).await;
    assert!(
        have.into_iter()
            .eq((1..=1_000).filter(|u| ![30, 31, 999].contains(u)))
    );
    // Two attempts at the whole, and the third finds out for whom it fails.
    assert!(
        (20..60).contains(&world.timelines.failed()),
        "{}",
        world.timelines.failed()
    );
    let reasons = world.reasons().await;
    assert_eq!(reasons.len(), 1);
    let reason = format!("{words} (for 3 of 1000 recipients, isolated)");
    assert!(reasons[0].contains(&reason), "{reasons:?}");
    let event = world.last_event().await;
    assert_eq!(
        (event.delivered_count, event.dead_count, event.revision),
        (997, 3, 1)
    );

    // Whoever mends it redrives it: then all have it.
    world.timelines.heal();
    let chunk = world.plan(POST, &all).await;
    world.redrive(sequence, &chunk).await;
    assert_eq!(world.have(POST, &all).await.len(), 1_000);
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
async fn who_makes_the_store_panic_is_isolated() {
    a_fault_costs_only_those_it_is_about(Fault::Panic, "panic: a row that nobody thought of").await;
}

#[tokio::test]
async fn whose_timeline_is_corrupt_is_isolated() {
    a_fault_costs_only_those_it_is_about(Fault::Corrupt, "a timeline is malformed").await;
}

#[tokio::test]
async fn a_store_that_is_away_is_waited_for() {
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

/// Everything is ill: all are given up, in one dead letter.
#[tokio::test]
async fn a_chunk_of_which_nobody_can_be_delivered_to_is_given_up_whole() {
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

/// What became of a chunk can't be recorded over what nobody can read. It is given up, and no other chunk with it.
#[tokio::test]
async fn a_chunk_whose_outcome_is_corrupt_is_given_up_and_holds_up_nothing() {
    let (ill, sound) = (users([1, 2, 3]), users([1, 2, 3, 4]));
    let world = World::start_in(with_corrupt_outcome(POST, &ill)).await;
    world.publish(POST, &ill).await;
    // The same post, and another one.
    world.publish(POST, &sound).await;
    let last = world.publish(PostId(8), &ill).await;
    let consumer = consumers::timeline(Lane::Normal);
    world.settled(streams::TIMELINE, consumer, last).await;
    let reasons = world.reasons().await;
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    let reason = "the store failed: a row of the ledger is malformed (attempt 10, the last for a fault)";
    assert!(reasons[0].contains(reason), "{reasons:?}");
    for (post, users) in [(POST, &sound), (PostId(8), &ill)] {
        let recorded = world.outcome(post, users).await.unwrap();
        let count = users.len();
        assert_eq!(
            (recorded.outcome, recorded.revision),
            (Outcome::Delivered { count }, 1)
        );
    }
    // Nobody is kept from a post that is known to be for them.
    assert_eq!(world.have(POST, &ill).await, [1, 2, 3]);
}

/// A backfill is of many followers too, when a graph is imported.
#[tokio::test]
async fn a_backfill_reaches_all_but_those_it_fails_for() {
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
    let have = world.have(POST, &all).await;
    assert!(have.into_iter().eq((1..=100).filter(|user| *user != 30)));
    let reasons = world.reasons().await;
    assert!(
        reasons[0].contains("(for 1 of 100 recipients, isolated)"),
        "{reasons:?}"
    );
    // An auditor finds out why they have it; who hasn't is noted as well.
    let plan = world.stores.ledger.audit(POST).await.unwrap().unwrap();
    assert!(plan.backfilled.contains(&all));
}
