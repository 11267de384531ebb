//! Deliveries, limits and times to live.

use super::*;
use crate::ErrorKind;

#[tokio::test]
async fn a_delivery_is_readable_on_return_by_every_process() {
    let Some(bed) = bed().await else { return };
    let (worker, reader) = (bed.open().await, bed.open().await);
    worker
        .deliver(PostId(5), recipients([1, 70, 4_000_000]))
        .await
        .unwrap();
    for user in [1, 70, 4_000_000] {
        assert_eq!(newest(&reader, user).await, [5]);
        assert_eq!(newest(&worker, user).await, [5]);
    }
    assert!(newest(&reader, 2).await.is_empty());
}

/// Users of one bucket share a read of its tail.
#[tokio::test]
async fn timelines_are_read_in_any_order_from_tails_and_bodies() {
    let Some(bed) = bed().await else { return };
    let timelines = bed.open().await;
    deliver(&timelines, 3, &recipients([1, 2, 63, 64, 70])).await;
    merge::merge(&timelines.view, 0).await.unwrap();
    // In a body, in its tail and in both; the second bucket has a tail alone.
    deliver(&timelines, 5, &recipients([0, 2, 63, 70])).await;
    let users = [2, 63, 0, 2, 64, 3, 70, 1, 4_000_000, 2];
    let read = timelines.read(&users.map(UserKey)).await.unwrap();
    let posts: Vec<Vec<u64>> = read
        .into_iter()
        .map(|entries| entries.posts.into_iter().map(|post| post.0).collect())
        .collect();
    let expected: [&[u64]; 10] = [
        &[3, 5],
        &[3, 5],
        &[5],
        &[3, 5],
        &[3],
        &[],
        &[3, 5],
        &[3],
        &[],
        &[3, 5],
    ];
    assert_eq!(posts, expected);
}

#[tokio::test]
async fn a_repeated_delivery_changes_nothing() {
    let Some(bed) = bed().await else { return };
    let timelines = bed.open().await;
    for _ in 0..3 {
        deliver(&timelines, 5, &recipients([1, 2])).await;
    }
    assert_eq!(newest(&timelines, 1).await, [5]);
    merge::merge(&timelines.view, 0).await.unwrap();
    deliver(&timelines, 5, &recipients([1, 2])).await;
    merge::merge(&timelines.view, 0).await.unwrap();
    assert_eq!(newest(&timelines, 1).await, [5]);
    assert_eq!(stored(&timelines, 2).await.0, [5]);
}

#[tokio::test]
async fn a_timeline_keeps_the_newest_entries_of_the_retention() {
    let Some(bed) = bed().await else { return };
    let config = TimelinesConfig {
        entries_max: 10,
        ..config(&bed.redis.url())
    };
    let timelines = bed.open_with(config).await;
    for post in 1..=30 {
        deliver(&timelines, post, &recipients([3])).await;
    }
    assert_eq!(newest(&timelines, 3).await, (21..=30).rev().collect::<Vec<_>>());
    merge::merge(&timelines.view, 0).await.unwrap();
    assert_eq!(newest(&timelines, 3).await, (21..=30).rev().collect::<Vec<_>>());
    timelines.raise_oldest_kept(PostId(28)).await.unwrap();
    assert_eq!(newest(&timelines, 3).await, [30, 29, 28]);
    timelines.raise_oldest_kept(PostId(5)).await.unwrap();
    assert_eq!(newest(&timelines, 3).await, [30, 29, 28]);
    // Another process learns it with its next sample, which it takes at start.
    assert_eq!(newest(&bed.open().await, 3).await, [30, 29, 28]);
}

#[tokio::test]
async fn pages_continue_before_the_last_post() {
    let Some(bed) = bed().await else { return };
    let timelines = bed.open().await;
    for post in [3, 5, 8, 13] {
        deliver(&timelines, post, &recipients([3])).await;
    }
    let page = |before, limit| {
        let timelines = &timelines;
        async move {
            let page = timelines.newest(UserKey(3), before, limit).await.unwrap();
            page.posts.into_iter().map(|post| post.0).collect::<Vec<_>>()
        }
    };
    assert_eq!(page(None, 2).await, [13, 8]);
    assert_eq!(page(Some(PostId(8)), 2).await, [5, 3]);
    assert_eq!(page(Some(PostId(6)), 1).await, [5]);
    assert!(page(Some(PostId(3)), 2).await.is_empty());
}

#[tokio::test]
async fn every_key_has_a_time_to_live() {
    let Some(bed) = bed().await else { return };
    let timelines = bed.open().await;
    for round in 0..4 {
        for post in 1..=5 {
            deliver(&timelines, 10 * round + post, &recipients([1, 100, 10_000])).await;
        }
        // A merge removes the tails; the next deliveries make new ones.
        if round % 2 == 1 {
            for bucket in [0, 1, 156] {
                assert!(merge::merge(&timelines.view, bucket).await.unwrap());
            }
        }
        newest(&timelines, 1).await;
    }
    deliver(&timelines, 1_000, &recipients([1, 100, 10_000])).await;
    let keys = bed.redis.command(&["KEYS", "*"]).await.unwrap();
    let keys: Vec<String> = redis::from_redis_value(keys).unwrap();
    assert_eq!(keys.len(), 8, "{keys:?}");
    for key in keys {
        let ttl = bed.redis.command(&["TTL", &key]).await.unwrap();
        let ttl: i64 = redis::from_redis_value(ttl).unwrap();
        assert!(
            (31 * 86_400..=32 * 86_400).contains(&ttl),
            "{key} lives for {ttl} s"
        );
    }
}

#[tokio::test]
async fn concurrent_deliveries_lose_nothing_and_wait_for_capacity() {
    let Some(bed) = bed().await else { return };
    let config = TimelinesConfig {
        flush_pairs: 500,
        pending_pairs_max: 1_000,
        merge_blocks: 8,
        ..config(&bed.redis.url())
    };
    let workers = [
        Arc::new(bed.open_with(config.clone()).await),
        Arc::new(bed.open_with(config).await),
    ];
    let mut deliveries = tokio::task::JoinSet::new();
    for post in 1..=300 {
        let worker = Arc::clone(&workers[post as usize % 2]);
        deliveries.spawn(async move { deliver(&worker, post, &recipients(1..=130)).await });
    }
    deliveries.join_all().await;
    for user in [1, 63, 64, 130] {
        assert_eq!(
            newest(&workers[0], user).await,
            (1..=300).rev().collect::<Vec<_>>(),
            "user {user}"
        );
    }
}

#[tokio::test]
async fn close_writes_what_was_accepted_and_rejects_more() {
    let Some(bed) = bed().await else { return };
    let timelines = bed.open().await;
    let accepted = timelines.view.collector.put(1, &recipients([3])).await.unwrap();
    timelines.close().await;
    accepted.durable.await.unwrap();
    let refused = timelines.deliver(PostId(2), recipients([3])).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert_eq!(newest(&bed.open().await, 3).await, [1]);
}

#[tokio::test]
async fn a_post_id_above_the_maximum_is_rejected() {
    let Some(bed) = bed().await else { return };
    let timelines = bed.open().await;
    let refused = timelines
        .deliver(PostId(1 << 56), recipients([3]))
        .await
        .err()
        .unwrap();
    assert_eq!(refused.kind(), ErrorKind::LimitExceeded);
}
