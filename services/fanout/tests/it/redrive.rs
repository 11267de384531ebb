//! Redriven posts and slices.

use herald_fanout::Config;
use herald_mesh::{
    Redrive, Subject,
    consumers::{self, ConsumerKind},
    streams,
};
use herald_model::{Lane, PostId, time::Timestamp};
use herald_proto::mesh_v1::{FanoutSlice, PostCreated};

use crate::harness::{World, until};

fn dead_letter(kind: ConsumerKind, subject: Subject, sequence: u64, body: &impl prost::Message) -> Redrive {
    Redrive {
        kind,
        dead_letter: sequence,
        round: 1,
        subject,
        sequence,
        published_at: Timestamp::now(),
        payload: body.encode_to_vec().into(),
        trace_parent: None,
        trace_state: None,
        id: format!("dlq/{sequence}/redrive/1"),
    }
}

#[tokio::test]
async fn a_redriven_post_keeps_its_id_and_reaches_only_fanout() {
    let world = World::start(Config::default()).await;
    let users = world.users(4).await;
    let version = world.follow(users[0], &users[1..]).await;
    let created = PostCreated {
        author_key: users[0].0,
        author_id: "user 0".into(),
        ..PostCreated::default()
    };
    let post = dead_letter(
        ConsumerKind::Fanout,
        Subject::PostCreated(Lane::Low),
        4_711,
        &created,
    );
    world.mesh.redrive(&post).await.unwrap();
    until(async || world.mesh.last_sequence(streams::TIMELINE).await.unwrap() == 1).await;
    assert_eq!(world.chunks().await, [(4_711, users[1..].to_vec())]);
    let counts = world.stores.ledger.counts(PostId(4_711)).await.unwrap().unwrap();
    assert_eq!((counts.planned, counts.timeline.targeted), (true, 3));

    // A slice.
    let slice = FanoutSlice {
        post_id: 4_712,
        author_key: users[0].0,
        follow_version: version.0,
        after_key: users[1].0,
        slice_index: 1,
        ..FanoutSlice::default()
    };
    let slice = dead_letter(ConsumerKind::Slice, Subject::Slice(Lane::High), 9, &slice);
    world.mesh.redrive(&slice).await.unwrap();
    until(async || world.mesh.last_sequence(streams::TIMELINE).await.unwrap() == 2).await;
    assert_eq!(world.chunks().await[1], (4_712, users[2..].to_vec()));

    for kind in ConsumerKind::ALL {
        let consumer = consumers::redrive(kind);
        assert_eq!(world.mesh.pending(streams::REDRIVE, consumer).await.unwrap(), 0);
    }
    // The redrives published nothing to POSTS and SLICES.
    assert_eq!(world.mesh.last_sequence(streams::POSTS).await.unwrap(), 0);
    assert_eq!(world.mesh.last_sequence(streams::SLICES).await.unwrap(), 0);
}
