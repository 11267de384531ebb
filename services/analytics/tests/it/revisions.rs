//! A chunk's events are counted exactly, however they come.

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

/// Some chunks' events: out of order, over two hours, each twice, the second time so late that the broker knows their
/// ids no more; and then in events of many chunks, those of both hours mixed.
async fn publish(harness: &Harness) {
    let mut told = Vec::new();
    for again in [false, true] {
        for chunk in 0..20 {
            let revisions = [
                (2, counts(5, 2, 3), NEXT_HOUR),
                (1, counts(4, 0, 0), HOUR),
                // A redrive owes the dead ones again, and reaches two of them.
                (4, counts(7, 2, 1), NEXT_HOUR),
                (3, counts(5, 2, 0), HOUR),
            ];
            for (revision, counts, at) in revisions {
                let at = at + i64::from(again);
                harness
                    .tell(1, Channel::Push, chunk, at, (revision, counts))
                    .await;
                told.push(settled(1, chunk, at, (revision, counts)));
            }
            harness
                .tell(1, Channel::Timeline, chunk, HOUR, (1, counts(9, 0, 1)))
                .await;
        }
    }
    // Some that were not told before: in the middle, as a newer one of a chunk and an older one.
    for chunk in 20..40 {
        told.insert(4 * chunk as usize, settled(1, chunk, HOUR, (2, counts(3, 0, 0))));
        told.insert(
            3 * chunk as usize,
            settled(1, chunk, NEXT_HOUR, (1, counts(1, 0, 1))),
        );
    }
    for _ in 0..2 {
        for chunks in told.chunks(EVENT_CHUNKS_MAX) {
            harness.tell_all(Channel::Push, chunks.iter().copied()).await;
        }
    }
}

async fn each_is_counted_once(harness: &Harness) {
    let expected = Counts {
        timeline_delivered: 180,
        timeline_dead: 20,
        push_delivered: 140 + 20 * 3,
        push_suppressed: 40,
        push_dead: 20,
        ..Counts::default()
    };
    assert_eq!(harness.sums().await, expected);
    // The rows are the differences: they add up to the same.
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
async fn events_that_come_twice_late_or_out_of_order_are_counted_once() {
    let harness = Harness::start().await;
    publish(&harness).await;
    let running = harness.run(harness.config(), harness.stores.totals.clone()).await;
    harness.acknowledged().await;
    each_is_counted_once(&harness).await;
    // All of them again, after the first ones are long done.
    publish(&harness).await;
    harness.acknowledged().await;
    running.stop().await;
    each_is_counted_once(&harness).await;
    assert!(harness.metric("herald_analytics_stale_total") >= 200.0);
}

async fn survives(fault: Fault) {
    let harness = Harness::start().await;
    publish(&harness).await;
    let faulty = Faulty::new(harness.stores.totals.clone(), fault, 2);
    let mut config = harness.config();
    config.batch_rows_max = 7;
    let running = harness.run(config, faulty.clone()).await;
    harness.acknowledged().await;
    running.stop().await;
    assert!(faulty.faults() > 0);
    each_is_counted_once(&harness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_fails_loses_and_doubles_no_revision() {
    survives(Fault::Before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_fails_after_it_was_done_doubles_no_revision() {
    survives(Fault::After).await;
}

/// A redrive in a later hour takes back the deaths of an earlier one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deaths_are_taken_back_in_the_hour_of_the_redrive() {
    let harness = Harness::start().await;
    harness
        .tell(1, Channel::Push, 1, HOUR, (1, counts(4, 0, 6)))
        .await;
    let running = harness.run(harness.config(), harness.stores.totals.clone()).await;
    harness.acknowledged().await;
    harness
        .tell(1, Channel::Push, 1, NEXT_HOUR, (2, counts(9, 0, 1)))
        .await;
    harness.acknowledged().await;
    running.stop().await;
    let hours = harness.stores.totals.of_hours(0, u32::MAX).await.unwrap();
    let deaths: Vec<i64> = hours.iter().map(|(_, counts)| counts.push_dead).collect();
    assert_eq!(deaths, [6, -5]);
}
