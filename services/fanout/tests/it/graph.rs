//! The graph service stops: posts wait for it.

use std::time::Duration;

use herald_fanout::Config;
use herald_mesh::{consumers, streams};
use herald_model::{Lane, UserKey};
use herald_proto::mesh_v1::TimelineChunk;

use crate::harness::{World, until};

/// Publishes a post a lane while the graph service is stopped, and waits until all of them wait for it.
async fn world_waiting_for_graph() -> (World, Vec<UserKey>) {
    let mut world = World::start(Config::default()).await;
    let users = world.users(4).await;
    world.follow(users[0], &users[1..3]).await;
    world.stop_graph().await;
    for lane in Lane::ALL {
        world.post(users[0], lane).await;
    }
    until(async || world.metrics.waiting.get() == 3).await;
    (world, users)
}

#[tokio::test]
async fn posts_wait_for_the_graph_service_and_spend_no_attempt() {
    let (mut world, users) = Box::pin(world_waiting_for_graph()).await;
    // Answered before the fan-out.
    world.unfollow(users[0], &[users[1]]).await;
    world.follow(users[0], &[users[3]]).await;
    world.restart_graph().await;
    let last = async |stream| world.mesh.last_sequence(stream).await.unwrap();
    until(async || last(streams::TIMELINE).await == 3).await;
    let mut chunks = world.chunks().await;
    chunks.sort_unstable();
    assert_eq!(chunks, [1, 2, 3].map(|post| (post, users[2..].to_vec())));
    until(async || world.metrics.waiting.get() == 0).await;
    for (lane, post) in Lane::ALL.into_iter().zip(1..) {
        let consumer = consumers::fanout(lane);
        until(async || world.mesh.ack_floor(streams::POSTS, consumer).await.unwrap() == post).await;
        assert_eq!(
            world.deliveries(consumer).await,
            1,
            "{consumer} delivered its post again"
        );
    }
}

#[tokio::test]
async fn a_post_without_the_key_of_its_author_reaches_the_followers() {
    let world = World::start(Config::default()).await;
    let users = world.users(3).await;
    world.follow(users[0], &users[1..]).await;
    let post = world.post_of(UserKey(0), "user 0", Lane::Normal).await;
    until(async || world.mesh.last_sequence(streams::TIMELINE).await.unwrap() == 1).await;
    assert_eq!(world.chunks().await, [(post.0, users[1..].to_vec())]);
    let message = world.mesh.message(streams::TIMELINE, 1).await.unwrap();
    let chunk: TimelineChunk = message.unwrap().decode().unwrap();
    assert_eq!(UserKey(chunk.author_key), users[0]);
}

#[tokio::test]
async fn a_shutdown_ends_the_wait_for_the_graph_service() {
    let (mut world, _) = Box::pin(world_waiting_for_graph()).await;
    world.shutdown.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(10), &mut world.service).await;
    ended.expect("the service stops in time").unwrap().unwrap();
    assert_eq!(world.metrics.waiting.get(), 0);
    // The posts are not acknowledged: another process gets them.
    for lane in Lane::ALL {
        let floor = world
            .mesh
            .ack_floor(streams::POSTS, consumers::fanout(lane))
            .await;
        assert_eq!(floor.unwrap(), 0, "{lane}");
    }
}
