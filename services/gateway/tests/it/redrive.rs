//! Redrives of dead letters of the archive consumer.

use herald_mesh::{
    Redrive, Subject,
    consumers::{self, ConsumerKind},
    streams,
};
use herald_model::{Lane, PostId, time::Timestamp};
use herald_proto::mesh_v1;
use prost::Message as _;

use crate::harness::{World, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn a_redriven_post_is_archived_with_its_id_and_reaches_no_other_consumer() {
    let world = World::start().await;
    let author = world
        .stores
        .users
        .intern(&[herald_model::UserId::new("ann").unwrap()])
        .await
        .unwrap()[0];
    let created = mesh_v1::PostCreated {
        author_key: author.0,
        author_id: "ann".into(),
        request_id: "0199aaaa-0000-7000-8000-000000000001".into(),
        text: "late".into(),
        accepted_at_us: Timestamp::now().0,
        lane: herald_proto::v1::Lane::Normal.into(),
        ..Default::default()
    };
    let redrive = Redrive {
        kind: ConsumerKind::Archive,
        dead_letter: 5,
        round: 1,
        subject: Subject::PostCreated(Lane::Normal),
        sequence: 4_711,
        published_at: Timestamp::now(),
        payload: created.encode_to_vec().into(),
        trace_parent: None,
        trace_state: None,
        id: "dlq/5/redrive/1".into(),
    };
    let published = world.mesh.redrive(&redrive).await.unwrap().sequence;
    let consumer = consumers::redrive(ConsumerKind::Archive);
    wait_until("the redriven message is acknowledged", async || {
        world.mesh.ack_floor(streams::REDRIVE, consumer).await.unwrap() >= published
    })
    .await;
    let post = world
        .stores
        .posts
        .get(&[PostId(4_711)])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    assert_eq!((post.text.as_str(), post.author), ("late", author));
    assert_eq!(world.mesh.last_sequence("POSTS").await.unwrap(), 0);
    for kind in ConsumerKind::ALL {
        let consumer = consumers::redrive(kind);
        assert_eq!(world.mesh.pending(streams::REDRIVE, consumer).await.unwrap(), 0);
    }
    world.stop().await.unwrap();
}
