//! Lost timelines are made again, entry by entry.

use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::*;

const USERS: u32 = 80;
const AUTHORS: u32 = 6;

/// Makes a random history of follows, unfollows, posts and backfills. Returns the last post.
async fn history(
    bed: &Bed,
    timelines: &ClusterTimelines,
    random: &mut SmallRng,
    first: u64,
    steps: u64,
) -> u64 {
    let mut post = first;
    for _ in 0..steps {
        let (user, author) = (random.random_range(1..=USERS), random.random_range(1..=AUTHORS));
        match random.random_range(0..10) {
            0..5 => bed.follow(user, author, random.random_range(0..3) > 0).await,
            5 => {
                let users = recipients([user, USERS + 1]);
                let posts = [
                    PostId(random.random_range(1..=post)),
                    PostId(random.random_range(1..=post)),
                ];
                bed.ledger.record_backfill(&posts, &users).await.unwrap();
                for post in posts {
                    deliver(timelines, post.0, &users).await;
                }
            }
            _ => {
                bed.post(timelines, post, author).await;
                // Ids have gaps: deletions, and posts of authors without followers.
                post += random.random_range(1..2_000);
            }
        }
    }
    post
}

async fn all(timelines: &ClusterTimelines) -> BTreeMap<u32, Vec<u64>> {
    let mut found = BTreeMap::new();
    for user in 1..=USERS + 1 {
        found.insert(user, newest(timelines, user).await);
    }
    found
}

#[tokio::test]
async fn timelines_after_a_flush_equal_those_before() {
    let Some(bed) = bed().await else { return };
    let config = TimelinesConfig {
        entries_max: 30,
        merge_blocks: 16,
        ..config(&bed.redis.url())
    };
    let timelines = bed.open_with(config).await;
    let mut random = SmallRng::seed_from_u64(5);
    let last = history(&bed, &timelines, &mut random, 1, 700).await;
    let before = all(&timelines).await;
    assert!(before.values().any(|posts| posts.len() == 30) && before.values().any(|posts| posts.len() < 30));
    bed.redis.flush().await.unwrap();
    let (lost, complete) = stored(&timelines, 1).await;
    assert!(lost.is_empty() && !complete);
    assert_eq!(all(&timelines).await, before);
    // Deliveries after the flush, to timelines some of which were not read yet, are kept by later rebuilds.
    bed.redis.flush().await.unwrap();
    let mut twin = before;
    for post in 1..=20 {
        let post = last + 10_000 + post;
        let followers = bed
            .post(&timelines, post, (post % u64::from(AUTHORS)) as u32 + 1)
            .await;
        for user in &followers {
            let posts = twin.get_mut(&user.0).unwrap();
            posts.insert(0, post);
            posts.truncate(30);
        }
    }
    assert_eq!(all(&timelines).await, twin);
    bed.wait_for_repairs(&timelines).await;
    assert!(stored(&timelines, 1).await.1);
}

#[tokio::test]
async fn a_rebuild_of_many_counts_what_it_writes() {
    let Some(bed) = bed().await else { return };
    let timelines = bed.open().await;
    bed.follow(1, 9, true).await;
    bed.follow(2, 9, true).await;
    for post in 1..=5 {
        bed.post(&timelines, post, 9).await;
    }
    let users = [UserKey(1), UserKey(2), UserKey(3)];
    // Timelines of a new installation are complete.
    assert_eq!(timelines.rebuild(&users).await.unwrap(), Rebuilt::default());
    // Not a flush, which is noticed and repaired meanwhile.
    let (keys, whole) = (timelines.view.keys.bucket(0), timelines.view.keys.whole(0));
    bed.redis
        .command(&["DEL", &keys.tail, &keys.body, &whole])
        .await
        .unwrap();
    let again = timelines.rebuild(&users).await.unwrap();
    assert_eq!(
        again,
        Rebuilt {
            timelines: 3,
            entries: 10
        }
    );
    assert_eq!(stored(&timelines, 2).await, (vec![1, 2, 3, 4, 5], true));
}

#[tokio::test]
async fn a_dead_delivery_is_not_rebuilt() {
    let Some(bed) = bed().await else { return };
    let timelines = bed.open().await;
    bed.follow(1, 9, true).await;
    bed.follow(2, 9, true).await;
    bed.post(&timelines, 1, 9).await;
    let followers = bed.plan(2, 9).await;
    deliver(&timelines, 2, &recipients([1])).await;
    let settlement = Settlement {
        post: PostId(2),
        channel: Channel::Timeline,
        chunk: followers.chunk_id(),
        base: ExpectedRevision::Revision(0),
        outcome: Outcome::Mixed {
            delivered: recipients([1]),
            suppressed: Recipients::default(),
            expired: Recipients::default(),
            dead: recipients([2]),
            details: crate::OutcomeDetails::default(),
        },
        at: Timestamp::now(),
        keep_claim: None,
    };
    bed.ledger.settle(&settlement).await.unwrap();
    bed.redis.flush().await.unwrap();
    assert_eq!(newest(&timelines, 1).await, [2, 1]);
    assert_eq!(newest(&timelines, 2).await, [1]);
}

/// Deliveries during rebuilds, merges and flushes are all there in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_deliveries_survive_rebuilds_and_flushes() {
    const POSTS: u64 = 150;
    let Some(bed) = bed().await else { return };
    let config = TimelinesConfig {
        merge_blocks: 8,
        ..config(&bed.redis.url())
    };
    let timelines = Arc::new(bed.open_with(config.clone()).await);
    let reader = bed.open_with(config).await;
    for user in 1..=10 {
        bed.follow(user, 9, true).await;
    }
    let delivered = (1..=POSTS).collect::<BTreeSet<_>>();
    let delivering = async {
        for post in 1..=POSTS {
            bed.post(&timelines, post, 9).await;
            if post == POSTS / 2 {
                bed.redis.flush().await.unwrap();
            }
        }
    };
    let reading = async {
        for round in 0..60 {
            newest(&reader, round % 10 + 1).await;
            newest(&timelines, round % 7 + 1).await;
        }
    };
    tokio::join!(delivering, reading);
    for user in 1..=10 {
        let found = BTreeSet::from_iter(newest(&reader, user).await);
        assert_eq!(found, delivered, "user {user}");
    }
}

#[tokio::test]
async fn a_reader_does_not_wait_for_a_slow_rebuild() {
    let Some(bed) = bed().await else { return };
    let config = TimelinesConfig {
        rebuild_wait_ms: 50,
        ..config(&bed.redis.url())
    };
    let timelines = bed.open_with(config).await;
    bed.follow(1, 9, true).await;
    bed.post(&timelines, 1, 9).await;
    bed.post(&timelines, 2, 9).await;
    bed.redis.flush().await.unwrap();
    deliver(&timelines, 2, &recipients([1])).await;
    // A lock of the table stands for a slow PostgreSQL.
    let mut lock = bed.postgres.begin().await.unwrap();
    sqlx::query("LOCK TABLE herald.pinned_posts IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *lock)
        .await
        .unwrap();
    let page = timelines.newest(UserKey(1), None, 10).await.unwrap();
    assert_eq!((page.posts, page.rebuilding), (vec![PostId(2)], true));
    lock.rollback().await.unwrap();
    wait_until("the timeline is rebuilt", || async {
        let page = timelines.newest(UserKey(1), None, 10).await.unwrap();
        !page.rebuilding && page.posts == [PostId(2), PostId(1)]
    })
    .await;
}
