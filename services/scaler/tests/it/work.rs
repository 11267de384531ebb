//! How much work a backlog is.

use herald_mesh::Subject;
use herald_model::Lane;
use herald_proto::mesh_v1::{Backfill, FanoutSlice};

use crate::harness::{GATE, World, config, object};

#[tokio::test]
async fn a_message_is_as_much_work_as_it_has_recipients() {
    let world = World::start().await;
    let scaler = world.scaler(config()).await;
    let (high, all) = (object("push", "high"), object("push", ""));
    assert!(scaler.work(&high).await.abs() < f64::EPSILON);

    // 100 recipients a second.
    world.publish_push(Lane::High, 1).await;
    scaler.until_work(&high, 0.01).await;
    assert_eq!(scaler.value(&high).await.unwrap().metric_value, 1, "rounded up");
    for _ in 0..3 {
        world.publish_push(Lane::High, 512).await;
    }
    scaler.until_work(&high, 15.37).await;
    assert!(scaler.work(&object("push", "low")).await.abs() < f64::EPSILON);
    scaler.until_work(&all, 15.37).await;
    assert_eq!(scaler.metric("work_seconds", "push", "high"), Some(15.37));
    assert_eq!(scaler.metric("pending_deliveries", "push", "high"), Some(1_537.0));
    assert_eq!(scaler.metric("work_seconds", "push", "low"), Some(0.0));

    // A backfill brings up to 20 posts to each recipient.
    world.publish_timeline(Lane::Low, 4_096).await;
    let backfill = Backfill {
        recipient_count: 10,
        ..Backfill::default()
    };
    let sent = world
        .mesh
        .publish(Subject::TimelineBackfill(Lane::Low), None, &backfill)
        .await;
    sent.unwrap();
    scaler.until_work(&object("timeline", "low"), 4.296).await;
}

#[tokio::test]
async fn a_sample_is_enough_for_a_long_backlog() {
    let world = World::start().await;
    for index in 0..400 {
        world
            .publish_push(Lane::Low, if index % 2 == 0 { 500 } else { 100 })
            .await;
    }
    let scaler = world.scaler(config()).await;
    let work = scaler.work(&object("push", "low")).await;
    assert!(
        (800.0..=1_600.0).contains(&work),
        "1,200 s are pending, {work} s reported"
    );
}

#[tokio::test]
async fn a_post_and_a_slice_count_as_what_they_will_become() {
    let world = World::start().await;
    let scaler = world.scaler(config()).await;
    world.publish_post(Lane::Normal).await;
    // 1,000 assumed recipients a post, 1,000 a second.
    scaler.until_work(&object("fanout", "normal"), 1.0).await;
    scaler.until_work(&object("archive", ""), 0.1).await;
    scaler.until_work(&object("analytics", ""), 0.1).await;
    let slice = FanoutSlice::default();
    let sent = world
        .mesh
        .publish(Subject::Slice(Lane::Normal), None, &slice)
        .await;
    sent.unwrap();
    scaler.until_work(&object("fanout", "normal"), 66.536).await;
    scaler.until_work(&object("fanout", ""), 66.536).await;
}

#[tokio::test]
async fn a_lane_that_fan_out_holds_back_is_no_work() {
    let world = World::start().await;
    let scaler = world.scaler(config()).await;
    let fanout = object("fanout", "low");
    world.publish_post(Lane::Low).await;
    scaler.until_work(&fanout, 1.0).await;
    for _ in 0..GATE {
        world.publish_timeline(Lane::Low, 1_000).await;
    }
    scaler.until_work(&fanout, 0.0).await;
    assert_eq!(scaler.metric("held", "fanout", "low"), Some(1.0));
    assert!(
        scaler.is_active(&fanout).await,
        "a worker must be there when the lane is released"
    );
    scaler.until_work(&object("timeline", "low"), GATE as f64).await;
}
