//! Tests of the timelines: against a model, under concurrent flushes and merges, after kill -9 and on a full disk.

mod crash;
mod damage;
mod full;
mod model;

use std::{path::Path, sync::Arc};

use futures::executor::block_on;

use super::*;

/// Opens timelines in a directory.
fn open(dir: &Path, config: &Config) -> EmbeddedTimelines {
    let (space, fault) = (Arc::new(Space::new(dir, 0)), Arc::new(Fault::new(dir)));
    EmbeddedTimelines::open(dir, config, space, fault, &Contents::none(dir)).unwrap()
}

fn recipients(users: impl IntoIterator<Item = u32>) -> Recipients {
    Recipients::from_sorted(users.into_iter().map(UserKey))
}

fn newest(timelines: &EmbeddedTimelines, user: u32, before: Option<u64>, limit: usize) -> Vec<u64> {
    let posts = block_on(timelines.newest(UserKey(user), before.map(PostId), limit)).unwrap();
    posts.posts.into_iter().map(|post| post.0).collect()
}

#[test]
fn a_delivery_is_readable_before_it_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    // Long enough that the first reads happen before the flush.
    let config = Config {
        flush_interval_ms: 1_000,
        ..Config::default()
    };
    let timelines = open(dir.path(), &config);
    let delivered = block_on(timelines.deliver(PostId(5), recipients([1, 70, 4_000_000_000]))).unwrap();
    assert_eq!(delivered.suppressed, []);
    for user in [1, 70, 4_000_000_000] {
        assert_eq!(newest(&timelines, user, None, 10), [5]);
    }
    assert!(newest(&timelines, 2, None, 10).is_empty());
    block_on(delivered.durable).unwrap();
    assert_eq!(newest(&timelines, 4_000_000_000, None, 10), [5]);
}

#[test]
fn deliver_waits_while_both_runs_are_full() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        run_pairs_max: 10,
        flush_interval_ms: 1_000,
        ..Config::default()
    };
    let timelines = open(dir.path(), &config);
    let waiting: Vec<_> = (1..=40)
        .map(|post| {
            block_on(timelines.deliver(PostId(post), recipients(1..=7)))
                .unwrap()
                .durable
        })
        .collect();
    for durable in waiting {
        block_on(durable).unwrap();
    }
    assert_eq!(
        newest(&timelines, 7, None, 100),
        (1..=40).rev().collect::<Vec<_>>()
    );
}

#[test]
fn a_chunk_larger_than_a_run_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let timelines = open(
        dir.path(),
        &Config {
            run_pairs_max: 10,
            ..Config::default()
        },
    );
    block_on(async {
        timelines
            .deliver(PostId(1), recipients(1..=1_000))
            .await
            .unwrap()
            .durable
            .await
            .unwrap();
    });
    assert_eq!(newest(&timelines, 1_000, None, 1), [1]);
}

#[test]
fn close_flushes_all_deliveries_and_rejects_new_ones() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        flush_interval_ms: 1_000,
        ..Config::default()
    };
    let timelines = open(dir.path(), &config);
    let durable = block_on(timelines.deliver(PostId(1), recipients([3])))
        .unwrap()
        .durable;
    timelines.close().unwrap();
    block_on(durable).unwrap();
    let refused = block_on(timelines.deliver(PostId(2), recipients([3])))
        .err()
        .unwrap();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
}

#[test]
fn compaction_removes_merged_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        small_run_pairs_max: 0,
        flush_interval_ms: 0,
        merge_blocks_min: u32::MAX,
        ..Config::default()
    };
    let timelines = open(dir.path(), &config);
    let deliver = |post| {
        block_on(async {
            timelines
                .deliver(PostId(post), recipients(1..=500))
                .await
                .unwrap()
                .durable
                .await
                .unwrap();
        });
    };
    (1..=20).for_each(deliver);
    timelines.merge_all().unwrap();
    let disk = &timelines.shared.disk;
    disk.runs().major_compact().unwrap();
    assert_eq!(disk.runs().iter().count(), 0);
    assert_eq!(disk.merged().iter().count(), 500);
    deliver(21);
    assert_eq!(newest(&timelines, 500, None, 3), [21, 20, 19]);
}

/// A delivery stays readable at every moment while runs are flushed and merged.
#[test]
fn deliveries_stay_readable_during_flush_and_merge() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        flush_interval_ms: 0,
        small_run_pairs_max: 600,
        merge_blocks_min: 0,
        merge_busy_percent: 100,
        entries_max: 1_000,
        ..Config::default()
    };
    let timelines = open(dir.path(), &config);
    let delivered = std::sync::atomic::AtomicU64::new(0);
    let order = std::sync::atomic::Ordering::SeqCst;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for post in 1..=900 {
                // Every eighth run is large enough for a sorted table.
                let users = if post % 8 == 0 { 1..=1_000 } else { 1..=10 };
                let durable = block_on(timelines.deliver(PostId(post), recipients(users)))
                    .unwrap()
                    .durable;
                delivered.store(post, order);
                // Waiting here makes many short runs.
                block_on(durable).unwrap();
            }
        });
        loop {
            let expected_min = delivered.load(order);
            let found = newest(&timelines, 5, None, usize::MAX);
            assert!(
                found.len() as u64 >= expected_min,
                "{} of {expected_min} are readable",
                found.len()
            );
            if expected_min == 900 {
                break;
            }
        }
    });
}

/// Concurrent calls of `merge_all` and the merger thread lose no delivery while runs are flushed.
#[test]
fn concurrent_merges_lose_no_delivery() {
    const POSTS: u64 = 300;
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        flush_interval_ms: 0,
        merge_blocks_min: 0,
        merge_busy_percent: 100,
        ..Config::default()
    };
    let timelines = open(dir.path(), &config);
    let all_delivered = std::sync::atomic::AtomicBool::new(false);
    let order = std::sync::atomic::Ordering::SeqCst;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !all_delivered.load(order) {
                    timelines.merge_all().unwrap();
                }
            });
        }
        for post in 1..=POSTS {
            block_on(async {
                let delivered = timelines.deliver(PostId(post), recipients(1..=20)).await.unwrap();
                delivered.durable.await.unwrap();
            });
        }
        all_delivered.store(true, order);
    });
    timelines.merge_all().unwrap();
    for user in 1..=20 {
        let found = newest(&timelines, user, None, usize::MAX);
        assert_eq!(found, (1..=POSTS).rev().collect::<Vec<_>>(), "user {user}");
    }
}
