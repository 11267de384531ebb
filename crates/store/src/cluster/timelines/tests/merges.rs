//! Merges that race, die and meet a flush.

use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::*;

/// Workers deliver, and merge the same buckets, while merges are dropped at random points, as if the worker died there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merges_that_race_and_die_lose_and_repeat_nothing() {
    const POSTS: u64 = 400;
    let Some(bed) = bed().await else { return };
    let config = TimelinesConfig {
        // Merges are only made by this test.
        merge_blocks: 4_096,
        merge_bytes: usize::MAX / 2,
        ..config(&bed.redis.url())
    };
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(Arc::new(bed.open_with(config.clone()).await));
    }
    let mut tasks = tokio::task::JoinSet::new();
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    for (seed, worker) in workers.iter().cloned().enumerate() {
        let done = Arc::clone(&done);
        tasks.spawn(async move {
            let mut random = SmallRng::seed_from_u64(seed as u64);
            let (mut merged, mut died) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                let bucket = random.random_range(0..3);
                let life = Duration::from_micros(random.random_range(0..2_000));
                match tokio::time::timeout(life, merge::merge(&worker.view, bucket)).await {
                    Ok(outcome) => merged += u32::from(outcome.unwrap()),
                    Err(_) => died += 1,
                }
                tokio::task::yield_now().await;
            }
            assert!(merged > 0 && died > 0, "{merged} merged, {died} died");
        });
    }
    for post in 1..=POSTS {
        let worker = &workers[post as usize % 3];
        deliver(worker, post, &recipients(1..=150)).await;
        if post % 10 == 0 {
            let user = (post % 150) as u32 + 1;
            let (found, _) = stored(worker, user).await;
            assert_eq!(found, (1..=post).collect::<Vec<_>>(), "user {user} after {post}");
        }
    }
    done.store(true, Ordering::Relaxed);
    tasks.join_all().await;
    for bucket in 0..3 {
        merge::merge(&workers[0].view, bucket).await.unwrap();
    }
    for user in 1..=150 {
        let (found, _) = stored(&workers[1], user).await;
        assert_eq!(found, (1..=POSTS).collect::<Vec<_>>(), "user {user}");
    }
    for bucket in 0..3 {
        let tail = workers[0].view.keys.bucket(bucket).tail;
        let exists = bed.redis.command(&["EXISTS", &tail]).await.unwrap();
        assert_eq!(
            exists,
            redis::Value::Int(0),
            "the tail of bucket {bucket} is merged"
        );
    }
}

/// A merge that has read a tail writes nothing after the tail was lost and another one grew in its place, although no
/// body was there before and after.
#[tokio::test]
async fn a_merge_from_before_a_flush_removes_nothing_after_it() {
    let Some(bed) = bed().await else { return };
    let timelines = bed.open().await;
    for post in 1..=3 {
        deliver(&timelines, post, &recipients([1])).await;
    }
    let view = &timelines.view;
    let keys = view.keys.bucket(0);
    let blocks = bed
        .redis
        .command(&["LRANGE", &keys.tail, "0", "-1"])
        .await
        .unwrap();
    let blocks: Vec<Vec<u8>> = redis::from_redis_value(blocks).unwrap();
    assert_eq!(blocks.len(), 3);
    bed.redis.flush().await.unwrap();
    for post in 11..=13 {
        deliver(&timelines, post, &recipients([1])).await;
    }
    let written = merge::write(view, 0, b"", &blocks, &[]).await.unwrap();
    assert!(!written);
    assert_eq!(stored(&timelines, 1).await.0, [11, 12, 13]);
}

#[tokio::test]
async fn a_tail_is_merged_by_itself() {
    let Some(bed) = bed().await else { return };
    let config = TimelinesConfig {
        merge_blocks: 8,
        ..config(&bed.redis.url())
    };
    let timelines = bed.open_with(config).await;
    for post in 1..=50 {
        deliver(&timelines, post, &recipients([1])).await;
    }
    let tail = timelines.view.keys.bucket(0).tail;
    wait_until("the tail is short", || async {
        let length = bed.redis.command(&["LLEN", &tail]).await.unwrap();
        matches!(length, redis::Value::Int(0..10))
    })
    .await;
    assert_eq!(stored(&timelines, 1).await.0, (1..=50).collect::<Vec<_>>());
}
