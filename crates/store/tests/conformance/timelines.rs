//! Timelines.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use herald_model::{PostId, Recipients, UserKey};
use herald_store::{ErrorKind, Timelines};

use crate::{
    engine::Engine,
    sample::{eventually, set},
};

const ENTRIES_MAX: usize = 800;

/// Delivers a post and waits until it is durable.
pub(crate) async fn deliver(timelines: &dyn Timelines, post: u64, recipients: Recipients) {
    let delivered = timelines.deliver(PostId(post), recipients).await.unwrap();
    assert!(delivered.suppressed.is_empty());
    delivered.durable.await.unwrap();
}

pub(crate) async fn newest(
    timelines: &dyn Timelines,
    user: u32,
    before: Option<u64>,
    limit: usize,
) -> Vec<u64> {
    eventually("the timeline is complete", async || {
        let page = timelines
            .newest(UserKey(user), before.map(PostId), limit)
            .await
            .unwrap();
        (!page.rebuilding).then(|| page.posts.into_iter().map(|post| post.0).collect())
    })
    .await
}

async fn read(timelines: &dyn Timelines, users: &[u32]) -> Vec<Vec<u64>> {
    let users: Vec<_> = users.iter().copied().map(UserKey).collect();
    let read = timelines.read(&users).await.unwrap();
    assert_eq!(read.len(), users.len());
    read.into_iter()
        .map(|one| one.posts.into_iter().map(|post| post.0).collect())
        .collect()
}

pub async fn a_delivered_post_is_shown_at_once_newest_first<E: Engine>(engine: &mut E) {
    let users = [1, 70, u32::MAX - 1];
    {
        let timelines = engine.stores().timelines;
        for post in [5, 6, 1 << 40, (1 << 56) - 1] {
            let delivered = timelines.deliver(PostId(post), set(users)).await.unwrap();
            for user in users {
                assert_eq!(newest(&*timelines, user, None, 1).await, [post]);
            }
            delivered.durable.await.unwrap();
        }
        assert_eq!(newest(&*timelines, 2, None, 10).await, [0; 0]);
        assert_eq!(newest(&*timelines, 1, None, 0).await, [0; 0]);
        deliver(&*timelines, 7, set([])).await;
    }
    engine.reopen().await;
    for timelines in [engine.stores().timelines, engine.peer().await.timelines] {
        for user in users {
            assert_eq!(
                newest(&*timelines, user, None, 10).await,
                [(1 << 56) - 1, 1 << 40, 6, 5]
            );
        }
    }
}

pub async fn delivering_a_pair_again_changes_nothing<E: Engine>(engine: &mut E) {
    let both = [engine.stores().timelines, engine.peer().await.timelines];
    for round in 0..6 {
        for post in 1..=20 {
            deliver(&*both[(round + post as usize) % 2], post, set([1, 2, 3])).await;
        }
    }
    // Overlapping chunks.
    deliver(&*both[0], 20, set([3, 4])).await;
    let all: Vec<u64> = (1..=20).rev().collect();
    for timelines in &both {
        for user in 1..=3 {
            assert_eq!(newest(&**timelines, user, None, 100).await, all);
        }
        assert_eq!(
            read(&**timelines, &[3, 4, 5]).await,
            [(1..=20).collect(), vec![20], vec![]]
        );
    }
}

pub async fn posts_arrive_in_any_order<E: Engine>(engine: &mut E) {
    let timelines = engine.stores().timelines;
    for n in 0..100_u64 {
        deliver(&*timelines, 1 + n * 37 % 100 * 1_000, set([n as u32 % 2, 7])).await;
    }
    let all: Vec<u64> = (0..100).rev().map(|n| 1 + n * 1_000).collect();
    assert_eq!(newest(&*timelines, 7, None, 1_000).await, all);
    assert_eq!(
        read(&*timelines, &[7]).await[0],
        all.iter().copied().rev().collect::<Vec<_>>()
    );
}

pub async fn a_timeline_keeps_its_newest_posts<E: Engine>(engine: &mut E) {
    const POSTS: u64 = 2_000;
    {
        let timelines = engine.stores().timelines;
        // Out of order: each hundred backwards.
        let mut waiting = FuturesUnordered::new();
        for n in 0..POSTS {
            let post = n / 100 * 100 + (100 - n % 100);
            let users = if post % 10 == 0 {
                set([1, 2, 3])
            } else {
                set([1, 3])
            };
            waiting.push(timelines.deliver(PostId(post), users).await.unwrap().durable);
            if waiting.len() > 100 {
                waiting.next().await.unwrap().unwrap();
            }
        }
        while let Some(durable) = waiting.next().await {
            durable.unwrap();
        }
        let found = newest(&*timelines, 1, None, 10_000).await;
        assert_eq!(
            found,
            (POSTS - ENTRIES_MAX as u64 + 1..=POSTS).rev().collect::<Vec<_>>()
        );
    }
    engine.reopen().await;
    let timelines = engine.stores().timelines;
    let found = newest(&*timelines, 3, None, 10_000).await;
    assert_eq!(
        found,
        (POSTS - ENTRIES_MAX as u64 + 1..=POSTS).rev().collect::<Vec<_>>()
    );
    let few = newest(&*timelines, 2, None, 10_000).await;
    assert_eq!(few, (1..=POSTS / 10).rev().map(|n| n * 10).collect::<Vec<_>>());
    let whole = read(&*timelines, &[1]).await.remove(0);
    assert_eq!(whole.len(), ENTRIES_MAX);
    // An old post comes late: it is not shown.
    deliver(&*timelines, 3, set([1])).await;
    assert!(!newest(&*timelines, 1, None, 10_000).await.contains(&3));
}

pub async fn pages_go_back_to_the_oldest_post<E: Engine>(engine: &mut E) {
    let timelines = engine.stores().timelines;
    for post in 1..=101 {
        deliver(&*timelines, post * 3, set([1])).await;
    }
    let mut all = Vec::new();
    loop {
        let page = newest(&*timelines, 1, all.last().copied(), 10).await;
        if page.is_empty() {
            break;
        }
        all.extend(page);
    }
    assert_eq!(all, (1..=101).rev().map(|n| n * 3).collect::<Vec<_>>());
    // Between two posts, and before the first one.
    assert_eq!(newest(&*timelines, 1, Some(10), 2).await, [9, 6]);
    assert_eq!(newest(&*timelines, 1, Some(3), 2).await, [0; 0]);
    assert_eq!(newest(&*timelines, 1, Some(u64::MAX), 1).await, [303]);
}

pub async fn pages_stay_whole_during_deliveries<E: Engine>(engine: &mut E) {
    const POSTS: u64 = 300;
    let (timelines, peer) = (engine.stores().timelines, engine.peer().await.timelines);
    let delivered = Arc::new(AtomicU64::new(0));
    let writer = {
        let delivered = Arc::clone(&delivered);
        tokio::spawn(async move {
            for post in 1..=POSTS {
                let users = if post % 8 == 0 {
                    set(1..=1_000)
                } else {
                    set(1..=10)
                };
                let durable = timelines.deliver(PostId(post), users).await.unwrap().durable;
                delivered.store(post, Ordering::SeqCst);
                durable.await.unwrap();
            }
        })
    };
    loop {
        let at_least = delivered.load(Ordering::SeqCst);
        let first = newest(&*peer, 5, None, 20).await;
        let from = first.first().copied().unwrap_or(0);
        assert!(from >= at_least, "{at_least} was shown, and now only {from}");
        // The pages behind it have every post, whatever comes in front.
        let mut last = first.last().copied();
        let mut all = first;
        while let Some(before) = last {
            let page = newest(&*peer, 5, Some(before), 20).await;
            last = page.last().copied();
            all.extend(page);
        }
        assert_eq!(all, (1..=from).rev().collect::<Vec<_>>());
        if at_least == POSTS {
            break;
        }
    }
    writer.await.unwrap();
}

pub async fn concurrent_deliveries_are_all_shown<E: Engine>(engine: &mut E) {
    const POSTS: u64 = 400;
    let both = [engine.stores().timelines, engine.peer().await.timelines];
    let writers = (0..8_u64).map(|writer| {
        let timelines = both[writer as usize % 2].clone();
        tokio::spawn(async move {
            for post in (1..=POSTS).filter(|post| post % 8 == writer) {
                // Half of the users, from many buckets.
                let users =
                    set((0..2_000).filter(|user| u64::from(*user) % 2 == post % 2 || user % 100 == 0));
                deliver(&*timelines, post, users).await;
            }
        })
    });
    for writer in futures::future::join_all(writers).await {
        writer.unwrap();
    }
    for timelines in &both {
        for user in [0, 100, 1, 2, 63, 64, 65, 127, 128, 1_001, 1_999] {
            let expected: BTreeSet<u64> = (1..=POSTS)
                .filter(|post| user % 100 == 0 || u64::from(user) % 2 == post % 2)
                .collect();
            let found = newest(&**timelines, user, None, 1_000).await;
            assert!(found.iter().rev().eq(&expected), "user {user}");
        }
    }
}

pub async fn whole_timelines_of_many_users_are_read<E: Engine>(engine: &mut E) {
    let timelines = engine.stores().timelines;
    for post in 1..=30_u64 {
        deliver(
            &*timelines,
            post,
            set((1..=600).filter(|user| u64::from(*user) % post == 0)),
        )
        .await;
    }
    // In no order, one of them twice, one of them unknown.
    let mut users: Vec<u32> = (1..=600).map(|n| n * 7 % 601).collect();
    users.extend([30, 1_000_000]);
    let expected: Vec<Vec<u64>> = users
        .iter()
        .map(|user| {
            if *user > 600 {
                vec![]
            } else {
                (1..=30).filter(|post| u64::from(*user) % post == 0).collect()
            }
        })
        .collect();
    assert_eq!(read(&*timelines, &users).await, expected);
    assert_eq!(read(&*timelines, &[]).await, Vec::<Vec<u64>>::new());
}

pub async fn a_chunk_of_65_536_recipients_is_delivered<E: Engine>(engine: &mut E) {
    let timelines = engine.stores().timelines;
    let users = (0..65_536_u32).map(|n| 1 + n * 65_000);
    deliver(&*timelines, 9, set(users)).await;
    for n in [0, 1, 63, 64, 32_768, 65_535] {
        assert_eq!(newest(&*timelines, 1 + n * 65_000, None, 10).await, [9]);
        assert_eq!(newest(&*timelines, 2 + n * 65_000, None, 10).await, [0; 0]);
    }
}

pub async fn a_post_id_above_the_maximum_is_refused<E: Engine>(engine: &mut E) {
    let timelines = engine.stores().timelines;
    let refused = timelines.deliver(PostId(1 << 56), set([3])).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::LimitExceeded);
    assert_eq!(newest(&*timelines, 3, None, 10).await, [0; 0]);
}

pub async fn a_complete_timeline_has_nothing_to_rebuild<E: Engine>(engine: &mut E) {
    let timelines = engine.stores().timelines;
    deliver(&*timelines, 9, set([1, 2])).await;
    // A read makes it complete, if it was not.
    assert_eq!(newest(&*timelines, 1, None, 10).await, [9]);
    let rebuilt = timelines.rebuild(&[UserKey(1)]).await.unwrap();
    assert_eq!(rebuilt.entries, 0);
    let read = timelines.read(&[UserKey(1)]).await.unwrap().remove(0);
    assert_eq!((read.posts, read.complete), (vec![PostId(9)], true));
}

pub async fn an_erased_timeline_stays_empty<E: Engine>(engine: &mut E) {
    let timelines = engine.stores().timelines;
    // In one bucket, and in others.
    let everyone = [64, 65, 66, 400, 100_000];
    for post in 1..=10 {
        deliver(&*timelines, post, set(everyone)).await;
    }
    // Merged, where reads do that.
    for user in everyone {
        assert_eq!(newest(&*timelines, user, None, 100).await.len(), 10);
    }
    deliver(&*timelines, 11, set(everyone)).await;
    assert_eq!(timelines.erase(UserKey(65)).await.unwrap(), 11);
    assert_eq!(timelines.erase(UserKey(65)).await.unwrap(), 0);
    assert_eq!(timelines.erase(UserKey(9)).await.unwrap(), 0, "without entries");
    let peer = engine.peer().await.timelines;
    let is_empty = async |timelines: &dyn Timelines| {
        for user in [65, 9] {
            assert_eq!(newest(timelines, user, None, 100).await, [0; 0], "{user}");
            let read = timelines.read(&[UserKey(user)]).await.unwrap().remove(0);
            assert_eq!((read.posts, read.complete), (vec![], false), "{user}");
        }
        for user in [64, 66, 400, 100_000] {
            let found = newest(timelines, user, None, 100).await;
            assert!(
                found.iter().rev().take(11).eq(&(1..=11).collect::<Vec<_>>()),
                "{user}: {found:?}"
            );
        }
    };
    is_empty(&*timelines).await;
    is_empty(&*peer).await;
    // Deliveries in flight, and a repair.
    deliver(&*timelines, 12, set(everyone)).await;
    deliver(&*peer, 13, set(everyone)).await;
    is_empty(&*timelines).await;
    is_empty(&*peer).await;
    let users = everyone.map(UserKey);
    timelines.rebuild(&users).await.unwrap();
    peer.rebuild(&users).await.unwrap();
    is_empty(&*timelines).await;
    is_empty(&*peer).await;
    drop((timelines, peer));
    engine.reopen().await;
    is_empty(&*engine.stores().timelines).await;
}
