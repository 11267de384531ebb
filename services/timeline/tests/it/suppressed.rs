//! Recipients whose timelines are not written on purpose.

use futures::StreamExt as _;
use herald_mesh::{consumers, streams};
use herald_model::{Lane, PostId};
use herald_proto::mesh_v1::LiveUpdates;
use herald_store::{Outcome, SuppressedReason};
use prost::Message as _;

use crate::harness::{World, users};

const POST: PostId = PostId(7);

#[tokio::test]
async fn suppressed_recipients_are_settled_with_their_reason_and_watchers_of_them_hear_nothing() {
    let world = World::start().await;
    world.timelines.suppress(&[
        (SuppressedReason::Inactive, &[2, 5]),
        (SuppressedReason::Drowning, &[3]),
    ]);
    let mut live = world.mesh.subscribe_live().await.unwrap();
    let all = users(1..=6);
    let sequence = world.publish(POST, &all).await;
    let consumer = consumers::timeline(Lane::Normal);
    world.settled(streams::TIMELINE, consumer, sequence).await;

    assert_eq!(world.users_with(POST, &all).await, [1, 4, 6]);
    let counts = world.counts(POST).await;
    assert_eq!((counts.delivered, counts.suppressed, counts.pending), (3, 3, 0));
    assert_eq!(
        counts.suppressed_by.iter().collect::<Vec<_>>(),
        [(SuppressedReason::Inactive, 2), (SuppressedReason::Drowning, 1)]
    );
    let event = world.last_event().await;
    assert_eq!(
        (event.delivered_count, event.suppressed_count, event.revision),
        (3, 3, 1)
    );
    let update = LiveUpdates::decode(live.next().await.unwrap()).unwrap();
    let chunks: Vec<_> = update
        .chunks
        .iter()
        .map(|chunk| chunk.recipients.clone())
        .collect();
    assert_eq!(chunks, [users([1, 4, 6]).as_bytes().clone()]);

    // The same chunk again, when 2 has become active, and 4 inactive.
    world.timelines.suppress(&[
        (SuppressedReason::Inactive, &[4, 5]),
        (SuppressedReason::Drowning, &[3]),
    ]);
    let chunk = world.plan(POST, &all).await;
    world.redrive(sequence, &chunk).await;
    let counts = world.counts(POST).await;
    assert_eq!((counts.delivered, counts.suppressed, counts.pending), (4, 2, 0));
    let recorded = world.outcome(POST, &all).await.unwrap();
    let Outcome::Mixed {
        delivered, details, ..
    } = recorded.outcome
    else {
        panic!("the outcome is not mixed")
    };
    assert_eq!(delivered, users([1, 2, 4, 6]));
    assert_eq!(
        details.suppressed,
        [
            (SuppressedReason::Inactive, users([5])),
            (SuppressedReason::Drowning, users([3]))
        ]
    );
}
