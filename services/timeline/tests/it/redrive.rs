//! Redriven chunks.

use herald_mesh::{consumers, consumers::ConsumerKind, streams};
use herald_model::PostId;

use crate::harness::{World, users};

#[tokio::test]
async fn a_redriven_chunk_reaches_only_timeline() {
    let world = World::start().await;
    let all = users([1, 2, 3]);
    let chunk = world.plan(PostId(77), &all).await;
    world.redrive(4_711, &chunk).await;
    assert_eq!(world.users_with(PostId(77), &all).await, [1, 2, 3]);
    assert_eq!(world.counts(PostId(77)).await.delivered, 3);
    // The redrive published nothing to TIMELINE, and no other consumer received it.
    assert_eq!(world.mesh.last_sequence(streams::TIMELINE).await.unwrap(), 0);
    for kind in ConsumerKind::ALL
        .into_iter()
        .filter(|kind| *kind != ConsumerKind::Timeline)
    {
        let consumer = consumers::redrive(kind);
        assert_eq!(world.mesh.pending(streams::REDRIVE, consumer).await.unwrap(), 0);
    }
}
