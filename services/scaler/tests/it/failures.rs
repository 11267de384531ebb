//! What can't be read is an error, never 0.

use herald_mesh::{consumers, streams};
use herald_model::Lane;
use tonic::Code;

use crate::harness::{World, config, object, until};

#[tokio::test]
async fn a_missing_consumer_is_an_error_of_its_lane() {
    let world = World::start().await;
    let scaler = world.scaler(config()).await;
    let (low, high) = (object("push", "low"), object("push", "high"));
    assert!(scaler.work(&low).await.abs() < f64::EPSILON);
    assert_eq!(scaler.metric("work_seconds", "push", "low"), Some(0.0));

    let stream = world.jetstream().await.get_stream(streams::PUSH).await.unwrap();
    stream.delete_consumer(consumers::push(Lane::Low)).await.unwrap();
    let error = scaler.until_error(&low, Code::FailedPrecondition).await;
    assert!(
        error
            .message()
            .starts_with("consumer push-low of stream PUSH does not exist: run `herald topology"),
        "{error}"
    );
    assert_eq!(
        scaler.error(&object("push", "")).await.unwrap().code(),
        Code::FailedPrecondition
    );
    assert!(
        scaler.work(&high).await.abs() < f64::EPSILON,
        "the other lanes are known"
    );
    until("the metrics have no value", async || {
        scaler.metric("work_seconds", "push", "low").is_none()
            && scaler.metric("pending_deliveries", "push", "all").is_none()
    })
    .await;
    assert_eq!(scaler.metric("work_seconds", "push", "high"), Some(0.0));

    world.mesh.ensure(&world.topology).await.unwrap();
    until("the lane is known again", async || {
        scaler.value(&low).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_broker_that_is_away_is_an_error_of_all() {
    let mut world = World::start().await;
    let scaler = world.scaler(config()).await;
    world.publish_push(Lane::Low, 100).await;
    let low = object("push", "low");
    scaler.until_work(&low, 1.0).await;
    let mut client = scaler.client.clone();
    let idle = object("push", "high");
    let mut responses = client.stream_is_active(idle.clone()).await.unwrap().into_inner();

    world.server.stop().await.unwrap();
    let error = scaler.until_error(&low, Code::Unavailable).await;
    assert!(error.message().contains("NATS"), "{error}");
    assert_eq!(scaler.error(&idle).await.unwrap().code(), Code::Unavailable);
    let ended = responses.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable);
    until("the metrics have no value", async || {
        scaler.metric("work_seconds", "push", "low").is_none()
    })
    .await;

    world.server.restart().await.unwrap();
    until("the work is known again", async || {
        scaler
            .value(&low)
            .await
            .is_ok_and(|value| value.metric_value == 1)
    })
    .await;
}

#[tokio::test]
async fn a_mesh_without_streams_is_an_error() {
    let world = World::start().await;
    let jetstream = world.jetstream().await;
    jetstream.delete_stream(streams::EVENTS).await.unwrap();
    let scaler = world.scaler(config()).await;
    let error = scaler
        .until_error(&object("analytics", ""), Code::FailedPrecondition)
        .await;
    assert!(
        error
            .message()
            .starts_with("consumer analytics-events of stream EVENTS does not exist"),
        "{error}"
    );
}
