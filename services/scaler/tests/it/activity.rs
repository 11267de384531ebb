//! When a role is active.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::consumer::PullConsumer;
use futures::StreamExt as _;
use herald_mesh::{ConsumeOptions, Delivery, Disposition, Handler, Workers, consumers, streams};
use herald_model::Lane;
use herald_scaler::Config;
use tokio_util::sync::CancellationToken;

use crate::harness::{Scaler, World, config, object, until};

/// Acknowledges each message at once.
struct Acks;

#[tonic::async_trait]
impl Handler for Acks {
    async fn handle(&self, _: &Delivery) -> Disposition {
        Disposition::Ack
    }
}

/// Starts a worker that keeps up.
fn work(world: &World, stop: &CancellationToken) -> Workers {
    let mut workers = Workers::new(world.mesh.clone(), world.topology.clone(), stop);
    workers
        .spawn(
            consumers::push(Lane::Normal),
            Arc::new(Acks),
            ConsumeOptions::default(),
        )
        .unwrap();
    workers
}

async fn until_done(world: &World) {
    let last = world.mesh.last_sequence(streams::PUSH).await.unwrap();
    until("all messages are acknowledged", async || {
        let floor = world
            .mesh
            .ack_floor(streams::PUSH, consumers::push(Lane::Normal))
            .await;
        floor.unwrap() == last
    })
    .await;
}

#[tokio::test]
async fn a_role_that_keeps_up_is_active_until_some_time_after_the_last_arrival() {
    let world = World::start().await;
    let scaler = world.scaler(config()).await;
    let push = object("push", "normal");
    assert!(!scaler.is_active(&push).await, "nothing ever arrived");

    let stop = CancellationToken::new();
    let workers = work(&world, &stop);
    world.publish_push(Lane::Normal, 10).await;
    until_done(&world).await;
    until("an arrival is seen", async || scaler.is_active(&push).await).await;
    // Messages go on to arrive, more than two times as long as a role stays active without.
    let started = tokio::time::Instant::now();
    while started.elapsed() < Duration::from_millis(2_500) {
        world.publish_push(Lane::Normal, 10).await;
        until_done(&world).await;
        assert!(scaler.is_active(&push).await, "after {:?}", started.elapsed());
    }
    let rate = scaler.metric("arrivals_per_second", "push", "normal").unwrap();
    assert!(rate > 0.0);
    let seconds = scaler.work(&push).await;
    assert!(
        seconds > 0.0,
        "the arrivals are work, although nothing is pending"
    );
    let quiet = tokio::time::Instant::now();
    until("the role is idle", async || !scaler.is_active(&push).await).await;
    assert!(
        quiet.elapsed() > Duration::from_millis(500),
        "{:?}",
        quiet.elapsed()
    );
    assert!(!scaler.is_active(&object("push", "high")).await);
    stop.cancel();
    workers.join().await.unwrap();
}

#[tokio::test]
async fn a_scaler_that_was_started_again_knows_the_last_arrival() {
    let world = World::start().await;
    let stop = CancellationToken::new();
    let workers = work(&world, &stop);
    world.publish_push(Lane::Normal, 10).await;
    until_done(&world).await;
    let scaler = world
        .scaler(Config {
            keep_active_seconds: 3_600,
            ..config()
        })
        .await;
    assert!(scaler.is_active(&object("push", "normal")).await);
    assert!(!scaler.is_active(&object("push", "low")).await);
    stop.cancel();
    workers.join().await.unwrap();
}

#[tokio::test]
async fn a_dead_message_wakes_a_worker_whose_pull_makes_its_advisory() {
    let world = World::with_topology(|topology| {
        topology.consumers.push.attempts_max = 2;
        topology.consumers.push.ack_wait_seconds = 1;
    })
    .await;
    let scaler = world.scaler(config()).await;
    let push = object("push", "high");
    world.publish_push(Lane::High, 10).await;
    let stream = world.jetstream().await.get_stream(streams::PUSH).await.unwrap();
    let consumer: PullConsumer = stream.get_consumer(consumers::push(Lane::High)).await.unwrap();
    // Two attempts that nobody acknowledges; then nobody pulls.
    for _ in 0..2 {
        let mut batch = consumer
            .batch()
            .max_messages(1)
            .expires(Duration::from_secs(10))
            .messages()
            .await
            .unwrap();
        batch.next().await.unwrap().unwrap();
    }
    // Longer than a role stays active without a message, and than the ack wait of the last attempt.
    until("the message is old", async || {
        scaler
            .metric("oldest_seconds", "push", "high")
            .is_some_and(|age| age > 5.0)
    })
    .await;
    let info = stream.consumer_info(consumers::push(Lane::High)).await.unwrap();
    assert_eq!((info.num_pending, info.delivered.consumer_sequence), (0, 2));
    assert!(scaler.is_active(&push).await);
    assert_eq!(advisories(&world).await, 0);

    let pull = consumer.fetch().max_messages(1).messages().await.unwrap();
    assert_eq!(pull.count().await, 0, "the message is dead");
    until("the advisory is there", async || advisories(&world).await == 1).await;
    until("the role is idle", async || !scaler.is_active(&push).await).await;
}

async fn advisories(world: &World) -> u64 {
    world.mesh.last_sequence(streams::ADVISORIES).await.unwrap()
}

#[tokio::test]
async fn a_stream_reports_each_activation_at_once() {
    let world = World::start().await;
    let scaler: Scaler = world.scaler(config()).await;
    let mut client = scaler.client.clone();
    let timeline = object("timeline", "high");
    let mut responses = client
        .stream_is_active(timeline.clone())
        .await
        .unwrap()
        .into_inner();
    world.publish_timeline(Lane::High, 10).await;
    let first = responses.message().await.unwrap().unwrap();
    assert!(first.result);
    // Who asks later is told at once.
    let mut late = client
        .stream_is_active(timeline.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(late.message().await.unwrap().unwrap().result);

    let stream = world
        .jetstream()
        .await
        .get_stream(streams::TIMELINE)
        .await
        .unwrap();
    stream.purge().await.unwrap();
    until("the role is idle", async || !scaler.is_active(&timeline).await).await;
    world.publish_timeline(Lane::High, 10).await;
    // The next response is the next activation: that the role was idle is not sent.
    assert!(responses.message().await.unwrap().unwrap().result);
}
