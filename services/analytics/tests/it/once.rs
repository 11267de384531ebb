//! Each message is one row and counted once, whatever goes wrong.

use std::sync::Arc;
use std::time::Duration;

use herald_analytics::run;
use herald_mesh::{Mesh, Subject};
use herald_model::{Channel, Lane};
use herald_proto::mesh_v1::{DeliveriesSettled, SettledChunk};
use herald_store::{Counts, Totals};
use parquet::record::Field;
use tokio_util::sync::CancellationToken;

use crate::faults::{Fault, Faulty};
use crate::harness::{HOUR, Harness, NEXT_HOUR, field, until};

/// Publishes 120 posts, 20 deletions and 200 settlements, over two hours.
async fn publish(harness: &Harness) {
    for n in 0..120 {
        let post = harness.post(if n % 2 == 0 { HOUR } else { NEXT_HOUR }).await;
        if n % 6 == 0 {
            harness.delete(post, NEXT_HOUR).await;
        }
    }
    for n in 0..100 {
        harness.settle(1, Channel::Timeline, n as u64, HOUR + n).await;
        harness.settle(1, Channel::Push, n as u64, NEXT_HOUR + n).await;
    }
}

async fn each_is_there_once(harness: &Harness) {
    assert_eq!(harness.rows("posts").len(), 120);
    assert_eq!(harness.rows("deletions").len(), 20);
    assert_eq!(harness.rows("deliveries").len(), 200);
    let counts = Counts {
        posts: 120,
        deleted_posts: 20,
        timeline_delivered: 1_000,
        timeline_dead: 0,
        push_delivered: 1_000,
        push_suppressed: 200,
        push_expired: 0,
        push_dead: 0,
    };
    assert_eq!(harness.sums().await, counts);
    assert_eq!(
        harness.stores.totals.intended().await.unwrap(),
        Vec::<String>::new()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_become_rows_by_hour_and_totals() {
    let harness = Harness::start().await;
    publish(&harness).await;
    let running = harness.run(harness.config(), harness.stores.totals.clone()).await;
    harness.acknowledged().await;
    running.stop().await;

    each_is_there_once(&harness).await;
    assert!(harness.metric("herald_analytics_files_total") > 0.0);
    for path in harness.files("posts") {
        let path = path.to_str().unwrap();
        assert!(
            path.contains("posts/date=2026-01-01/hour=10/POSTS-") || path.contains("/hour=11/POSTS-"),
            "{path}"
        );
    }
    let posts = harness.rows("posts");
    let post = &posts[&("POSTS".to_owned(), 1)];
    for (name, value) in [
        ("post_id", Field::ULong(1)),
        ("author_id", Field::Str("ann".into())),
        ("lane", Field::Str("high".into())),
        ("text_bytes", Field::UInt(5)),
        ("link_count", Field::UInt(1)),
        ("follow_version", Field::ULong(9)),
        ("accepted_at", Field::TimestampMicros(HOUR)),
    ] {
        assert_eq!(field(post, name), value, "{name}");
    }
    let deliveries = harness.rows("deliveries");
    let settled = &deliveries[&("EVENTS".to_owned(), 2)];
    assert_eq!(field(settled, "channel"), Field::Str("push".into()));
    assert_eq!(field(settled, "delivered_count"), Field::Int(10));
    assert_eq!(field(settled, "settled_at"), Field::TimestampMicros(NEXT_HOUR));
}

async fn survives(fault: Fault) {
    let harness = Harness::start().await;
    publish(&harness).await;
    let faulty = Faulty::new(harness.stores.totals.clone(), fault, 3);
    let running = harness.run(harness.config(), faulty.clone()).await;
    harness.acknowledged().await;
    running.stop().await;
    assert!(faulty.faults() > 0);
    each_is_there_once(&harness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_fails_doubles_nothing() {
    survives(Fault::Before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_fails_after_it_was_done_doubles_nothing() {
    survives(Fault::After).await;
}

#[test]
fn a_kill_between_write_and_commit_doubles_nothing() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let harness = Harness::start().await;
        publish(&harness).await;

        // The runtime of the one that is killed: all of its tasks go with it.
        let killed = tokio::runtime::Runtime::new().unwrap();
        let faulty = Faulty::new(harness.stores.totals.clone(), Fault::Hang, 2);
        let totals: Arc<dyn Totals> = faulty.clone();
        let url = harness.nats.client_url();
        let mesh = killed
            .spawn(async move { Mesh::connect(&herald_mesh::Config::at(url)).await.unwrap() })
            .await
            .unwrap();
        let (mut deps, _) = harness.deps(mesh, totals).await;
        // A listener belongs to the runtime it was made in.
        deps.listener = killed
            .spawn(async { tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap() })
            .await
            .unwrap();
        killed.spawn(run(harness.config(), deps, CancellationToken::new()));
        until(async || faulty.faults() > 0).await;
        // Unlike a process, a runtime and a store shared with the next one can leave work behind that ends later: a write
        // on a blocking thread, a commit in the store's queue. Both are awaited.
        tokio::task::spawn_blocking(move || killed.shutdown_timeout(Duration::from_secs(30)))
            .await
            .unwrap();
        harness.stores.totals.abandon("none of them").await.unwrap();
        let left = harness.stores.totals.intended().await.unwrap();
        assert!(!left.is_empty());
        assert!(
            left.iter().any(|file| harness.files_dir().join(file).exists()),
            "{left:?}"
        );

        let running = harness.run(harness.config(), harness.stores.totals.clone()).await;
        harness.acknowledged().await;
        running.stop().await;
        for file in left {
            assert!(!harness.stores.totals.intended().await.unwrap().contains(&file));
        }
        assert!(harness.metric("herald_analytics_leftovers_total") > 0.0);
        each_is_there_once(&harness).await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_can_not_be_written_is_tried_again() {
    let harness = Harness::start().await;
    publish(&harness).await;
    // A file stands where a folder should be.
    std::fs::create_dir_all(harness.files_dir()).unwrap();
    let obstacle = harness.files_dir().join("posts");
    std::fs::write(&obstacle, "").unwrap();
    let running = harness.run(harness.config(), harness.stores.totals.clone()).await;
    until(async || harness.metric("herald_analytics_failures_total") >= 2.0).await;
    assert_eq!(harness.sums().await.posts, 0);
    std::fs::remove_file(obstacle).unwrap();
    harness.acknowledged().await;
    running.stop().await;
    each_is_there_once(&harness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_read_is_given_up_and_holds_up_nothing() {
    let harness = Harness::start().await;
    let wrong = DeliveriesSettled::from(SettledChunk {
        post_id: 1,
        author_key: 2,
        ..SettledChunk::default()
    });
    harness
        .mesh
        .publish(Subject::PostCreated(Lane::Low), None, &wrong)
        .await
        .unwrap();
    harness.settle(1, Channel::Push, 0, -HOUR).await;
    publish(&harness).await;
    let running = harness.run(harness.config(), harness.stores.totals.clone()).await;
    harness.acknowledged().await;
    running.stop().await;
    each_is_there_once(&harness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_does_not_wait_for_a_batch_to_fill() {
    let harness = Harness::start().await;
    let mut config = harness.config();
    config.batch_age_ms_max = 600_000;
    config.batch_rows_max = 1_000;
    publish(&harness).await;
    let running = harness.run(config, harness.stores.totals.clone()).await;
    // All are delivered, and none is written.
    until(async || {
        let lag = harness.mesh.lag(&harness.topology).await.unwrap();
        let waiting = |name: &str| {
            lag.iter()
                .flat_map(|stream| &stream.consumers)
                .find(|consumer| consumer.consumer == name)
                .map_or(0, |consumer| consumer.ack_pending_count)
        };
        waiting("analytics-posts") == 140 && waiting("analytics-events") == 200
    })
    .await;
    assert!(harness.files("posts").is_empty());
    running.stop().await;
    assert!(
        !harness.files("posts").is_empty(),
        "what was in memory is written"
    );
    // What was delivered and had not reached a handler yet went back, for the next one.
    let running = harness.run(harness.config(), harness.stores.totals.clone()).await;
    harness.acknowledged().await;
    running.stop().await;
    each_is_there_once(&harness).await;
}
