//! A lane that is paused while its chunks wait.

use herald_fanout::Config;
use herald_mesh::Gate;
use herald_model::Lane;

use crate::harness::{World, until};

#[tokio::test]
async fn a_paused_lane_is_shown_until_its_chunks_are_gone() {
    let world = World::start(Config {
        gate: Gate {
            pending_chunks_max: 1,
            interval_ms: 10,
        },
        ..Config::default()
    })
    .await;
    let [author, reader] = world.users(2).await[..] else {
        unreachable!("two users are asked for");
    };
    world.follow(author, &[reader]).await;
    let is_paused = |lane| world.metrics.paused(lane).get() == 1;
    world.post(author, Lane::Low).await;
    until(async || is_paused(Lane::Low)).await;
    assert!(!is_paused(Lane::High) && !is_paused(Lane::Normal));
    world.purge_timeline().await;
    until(async || !is_paused(Lane::Low)).await;
}
