//! Corrupt data in the graph store.

use herald_fanout::Config;
use herald_mesh::{Subject, consumers, streams};
use herald_model::Lane;
use herald_proto::mesh_v1::FanoutSlice;

use crate::harness::{World, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_post_whose_followers_are_corrupt_is_given_up_after_a_few_attempts() {
    let world = World::start(Config::default()).await;
    let users = world.users(3).await;
    let version = world.follow(users[0], &users[1..]).await;
    // The store has never had this follow version, which is how it finds that its history is not the post's.
    let slice = FanoutSlice {
        post_id: 1,
        author_key: users[0].0,
        follow_version: version.0 + 1,
        slice_index: 1,
        ..FanoutSlice::default()
    };
    let subject = Subject::Slice(Lane::Normal);
    world.mesh.publish(subject, Some("slice"), &slice).await.unwrap();
    // A transient error would be retried 1,000 times, for longer than this waits.
    let consumer = consumers::slice(Lane::Normal);
    until(async || world.mesh.ack_floor(streams::SLICES, consumer).await.unwrap() == 1).await;
    assert_eq!(world.mesh.last_sequence(streams::TIMELINE).await.unwrap(), 0);
}
