//! Counts of a chunk are exact for duplicated, late and reordered events.

use herald_model::Channel;
use herald_proto::EVENT_CHUNKS_MAX;
use herald_store::{Counts, SettledCounts};
use parquet::record::Field;

use crate::faults::{Fault, Faulty};
use crate::harness::{HOUR, Harness, NEXT_HOUR, field, settled};

fn counts(delivered: u32, suppressed: u32, dead: u32) -> SettledCounts {
    SettledCounts {
        delivered,
        suppressed,
        expired: 0,
        dead,
    }
}

/// Publishes events of some chunks: out of order, over two hours, each twice, the second time as after the dedupe
/// window. Then publishes events of many chunks, with both hours mixed.
async fn publish(harness: &Harness) {
    let mut published = Vec::new();
    for is_duplicate in [false, true] {
        for chunk in 0..20 {
            let revisions = [
                (2, counts(5, 2, 3), NEXT_HOUR),
                (1, counts(4, 0, 0), HOUR),
                // A redrive retries the dead deliveries, and delivers two of them.
                (4, counts(7, 2, 1), NEXT_HOUR),
                (3, counts(5, 2, 0), HOUR),
            ];
            for (revision, counts, at) in revisions {
                let at = at + i64::from(is_duplicate);
                harness
                    .publish_revision(1, Channel::Push, chunk, at, (revision, counts))
                    .await;
                published.push(settled(1, chunk, at, (revision, counts)));
            }
            harness
                .publish_revision(1, Channel::Timeline, chunk, HOUR, (1, counts(9, 0, 1)))
                .await;
        }
    }
    // Two revisions of chunks that were not published before, inserted among the other events.
    for chunk in 20..40 {
        published.insert(4 * chunk as usize, settled(1, chunk, HOUR, (2, counts(3, 0, 0))));
        published.insert(
            3 * chunk as usize,
            settled(1, chunk, NEXT_HOUR, (1, counts(1, 0, 1))),
        );
    }
    for _ in 0..2 {
        for chunks in published.chunks(EVENT_CHUNKS_MAX) {
            harness.publish_event(Channel::Push, chunks.iter().copied()).await;
        }
    }
}

async fn assert_counted_once(harness: &Harness) {
    let expected = Counts {
        timeline_delivered: 180,
        timeline_dead: 20,
        push_delivered: 140 + 20 * 3,
        push_suppressed: 40,
        push_dead: 20,
        ..Counts::default()
    };
    assert_eq!(harness.sums().await, expected);
    // Rows are differences, so their sums equal the totals.
    let mut sums = [0; 3];
    for (_, row) in &harness.all_rows("deliveries") {
        if field(row, "channel") == Field::Str("push".into()) {
            for (sum, column) in sums
                .iter_mut()
                .zip(["delivered_count", "suppressed_count", "dead_count"])
            {
                let Field::Int(value) = field(row, column) else {
                    panic!("{row:?}")
                };
                *sum += value;
            }
        }
    }
    assert_eq!(sums, [200, 40, 20]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duplicated_late_and_reordered_events_are_counted_once() {
    let harness = Harness::start().await;
    publish(&harness).await;
    let running = harness.run(harness.config(), harness.stores.totals.clone()).await;
    harness.wait_until_acknowledged().await;
    assert_counted_once(&harness).await;
    // Publish everything again after the first events were counted.
    publish(&harness).await;
    harness.wait_until_acknowledged().await;
    running.stop().await;
    assert_counted_once(&harness).await;
    assert!(harness.metric("herald_analytics_stale_total") >= 200.0);
}

async fn assert_tolerates(fault: Fault) {
    let harness = Harness::start().await;
    publish(&harness).await;
    let faulty = Faulty::new(harness.stores.totals.clone(), fault, 2);
    let mut config = harness.config();
    config.batch_rows_max = 7;
    let running = harness.run(config, faulty.clone()).await;
    harness.wait_until_acknowledged().await;
    running.stop().await;
    assert!(faulty.faults() > 0);
    assert_counted_once(&harness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_commit_loses_and_duplicates_no_revision() {
    assert_tolerates(Fault::Before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_fails_after_it_was_done_duplicates_no_revision() {
    assert_tolerates(Fault::After).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redrive_subtracts_dead_deliveries_in_its_own_hour() {
    let harness = Harness::start().await;
    harness
        .publish_revision(1, Channel::Push, 1, HOUR, (1, counts(4, 0, 6)))
        .await;
    let running = harness.run(harness.config(), harness.stores.totals.clone()).await;
    harness.wait_until_acknowledged().await;
    harness
        .publish_revision(1, Channel::Push, 1, NEXT_HOUR, (2, counts(9, 0, 1)))
        .await;
    harness.wait_until_acknowledged().await;
    running.stop().await;
    let hours = harness.stores.totals.hour_totals(0, u32::MAX).await.unwrap();
    let dead_counts: Vec<i64> = hours.iter().map(|(_, counts)| counts.push_dead).collect();
    assert_eq!(dead_counts, [6, -5]);
}
