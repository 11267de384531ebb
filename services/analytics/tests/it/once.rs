//! Each message has one row and is counted once, also after failures and crashes.

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
use crate::harness::{HOUR, Harness, NEXT_HOUR, field, wait_until};

/// Publishes 120 posts, 20 deletions and 200 settlements, over two hours.
pub(crate) async fn publish(harness: &Harness) {
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

pub(crate) async fn assert_counted_once(harness: &Harness) {
    assert_eq!(harness.rows("posts").len(), 120);
    assert_eq!(harness.rows("deletions").len(), 20);
    assert_eq!(harness.rows("deliveries").len(), 200);
    assert_sums(harness).await;
}

/// Each message is counted once, and no file is left over.
pub(crate) async fn assert_sums(harness: &Harness) {
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
    assert_eq!(harness.stores.totals.intended().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_become_rows_by_hour_and_totals() {
    let harness = Harness::start().await;
    publish(&harness).await;
    let running = harness.run(harness.config(), harness.stores.totals.clone()).await;
    harness.wait_until_acknowledged().await;
    running.stop().await;

    assert_counted_once(&harness).await;
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

async fn assert_tolerates(fault: Fault) {
    let harness = Harness::start().await;
    publish(&harness).await;
    let faulty = Faulty::new(harness.stores.totals.clone(), fault, 3);
    let running = harness.run(harness.config(), faulty.clone()).await;
    harness.wait_until_acknowledged().await;
    running.stop().await;
    assert!(faulty.faults() > 0);
    assert_counted_once(&harness).await;
    // The messages waited for the store and were not returned to the broker, which would have spent their attempts.
    let failures = harness.metric("herald_analytics_failures_total");
    assert!(failures.abs() < f64::EPSILON, "{failures} failures");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_commit_duplicates_nothing() {
    assert_tolerates(Fault::Before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_fails_after_it_was_done_duplicates_nothing() {
    assert_tolerates(Fault::After).await;
}

#[test]
fn a_crash_between_write_and_commit_duplicates_nothing() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let harness = Harness::start().await;
        publish(&harness).await;

        // The first service has its own runtime, so that all its tasks can be stopped at once.
        let killed = tokio::runtime::Runtime::new().unwrap();
        let faulty = Faulty::new(harness.stores.totals.clone(), Fault::Hang, 2);
        let totals: Arc<dyn Totals> = faulty.clone();
        let url = harness.nats.client_url();
        let mesh = killed
            .spawn(async move { Mesh::connect(&herald_mesh::Config::at(url)).await.unwrap() })
            .await
            .unwrap();
        let (mut deps, _) = harness.deps(mesh, totals).await;
        // A listener belongs to the runtime that created it.
        deps.listener = killed
            .spawn(async { tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap() })
            .await
            .unwrap()
            .into();
        killed.spawn(run(harness.config(), deps, CancellationToken::new()));
        wait_until(async || faulty.faults() > 0).await;
        // Unlike a killed process, a stopped runtime can leave work in progress: a write on a blocking thread, a commit
        // in the queue of the shared store. Wait for both.
        tokio::task::spawn_blocking(move || killed.shutdown_timeout(Duration::from_secs(30)))
            .await
            .unwrap();
        harness.stores.totals.abandon("no such file").await.unwrap();
        let uncounted = harness.stores.totals.intended().await.unwrap();
        assert!(!uncounted.is_empty());
        assert!(
            uncounted
                .iter()
                .any(|uncounted| harness.files_dir().join(&uncounted.file).exists()),
            "{uncounted:?}"
        );

        let running = harness.run(harness.config(), harness.stores.totals.clone()).await;
        harness.wait_until_acknowledged().await;
        // The lease of the killed service ends first.
        wait_until(async || harness.stores.totals.intended().await.unwrap().is_empty()).await;
        running.stop().await;
        assert!(harness.metric("herald_analytics_leftovers_total") > 0.0);
        assert_counted_once(&harness).await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_write_is_retried() {
    let harness = Harness::start().await;
    publish(&harness).await;
    // A file blocks the path of a directory.
    std::fs::create_dir_all(harness.files_dir()).unwrap();
    let blocking_file = harness.files_dir().join("posts");
    std::fs::write(&blocking_file, "").unwrap();
    let running = harness.run(harness.config(), harness.stores.totals.clone()).await;
    wait_until(async || harness.metric("herald_analytics_failures_total") >= 2.0).await;
    assert_eq!(harness.sums().await.posts, 0);
    std::fs::remove_file(blocking_file).unwrap();
    harness.wait_until_acknowledged().await;
    running.stop().await;
    assert_counted_once(&harness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_messages_are_terminated_and_block_no_others() {
    let harness = Harness::start().await;
    let malformed = DeliveriesSettled::from(SettledChunk {
        post_id: 1,
        author_key: 2,
        ..SettledChunk::default()
    });
    harness
        .mesh
        .publish(Subject::PostCreated(Lane::Low), None, &malformed)
        .await
        .unwrap();
    harness.settle(1, Channel::Push, 0, -HOUR).await;
    publish(&harness).await;
    let running = harness.run(harness.config(), harness.stores.totals.clone()).await;
    harness.wait_until_acknowledged().await;
    running.stop().await;
    assert_counted_once(&harness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_does_not_wait_for_a_batch_to_fill() {
    let harness = Harness::start().await;
    let mut config = harness.config();
    config.batch_age_ms_max = 600_000;
    config.batch_rows_max = 1_000;
    publish(&harness).await;
    let running = harness.run(config, harness.stores.totals.clone()).await;
    // Every message is delivered, and none is written.
    wait_until(async || {
        let lag = harness.mesh.lag(&harness.topology).await.unwrap();
        let ack_pending = |name: &str| {
            lag.iter()
                .flat_map(|stream| &stream.consumers)
                .find(|consumer| consumer.consumer == name)
                .map_or(0, |consumer| consumer.ack_pending_count)
        };
        ack_pending("analytics-posts") == 140 && ack_pending("analytics-events") == 200
    })
    .await;
    assert!(harness.files("posts").is_empty());
    running.stop().await;
    assert!(
        !harness.files("posts").is_empty(),
        "the gathered messages are written"
    );
    // Messages that had not reached a handler are redelivered to the next instance.
    let running = harness.run(harness.config(), harness.stores.totals.clone()).await;
    harness.wait_until_acknowledged().await;
    running.stop().await;
    assert_counted_once(&harness).await;
}
