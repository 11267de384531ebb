//! Backfills that wait for the archive.

use herald_mesh::{Subject, consumers, streams};
use herald_model::{Lane, PostId};
use herald_proto::mesh_v1::Backfill;

use crate::harness::{World, until, users};

const POST: PostId = PostId(1);

/// The waits are longer than the attempts of a message, two in this test.
#[tokio::test]
async fn a_backfill_waits_for_the_archive_and_spends_no_attempt() {
    let world = World::start_with_attempts(2).await;
    world.run_requeuer();
    world.accept(POST).await;
    let recipients = users([1, 2, 3]);
    let request = Backfill {
        author_key: 9,
        recipients: recipients.as_bytes().clone(),
        recipient_count: recipients.len(),
        posts_sequence: POST.0,
    };
    let subject = Subject::TimelineBackfill(Lane::Low);
    let published = world.mesh.publish(subject, Some("9/backfill/1"), &request).await;
    assert_eq!(published.unwrap().sequence, 1);
    // Three waits: each copy is a message of TIMELINE.
    let last = async || world.mesh.last_sequence(streams::TIMELINE).await.unwrap();
    until(async || last().await == 4).await;
    assert_eq!(world.users_with(POST, &recipients).await, [0; 0]);

    world.archive(POST).await;
    until(async || world.users_with(POST, &recipients).await == [1, 2, 3]).await;
    let consumer = consumers::timeline(Lane::Low);
    let settled = last().await;
    world.settled(streams::TIMELINE, consumer, settled).await;
    assert_eq!(world.reasons().await, [""; 0]);
}
