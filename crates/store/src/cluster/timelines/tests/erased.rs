//! Timelines that were erased stay empty.

use super::*;

/// What Redis has for a user, whoever knows of an erasure.
async fn raw(timelines: &ClusterTimelines, user: u32) -> Vec<u64> {
    let field = read::timeline(&timelines.view, &timelines.view.writer, UserKey(user)).await;
    field.unwrap().posts
}

/// Two users who follow author 9, with five posts on their timelines.
async fn fill(bed: &Bed, timelines: &ClusterTimelines) {
    for user in [1, 2] {
        bed.follow(user, 9, true).await;
    }
    for post in 1..=5 {
        bed.post(timelines, post, 9).await;
    }
}

#[tokio::test]
async fn a_process_that_has_not_sampled_an_erasure_shows_nothing() {
    let Some(bed) = bed().await else { return };
    let (one, other) = (bed.open().await, bed.open().await);
    fill(&bed, &one).await;
    assert_eq!(newest(&other, 1).await, [5, 4, 3, 2, 1]);
    assert_eq!(one.erase(UserKey(1)).await.unwrap(), 5);
    assert_eq!(raw(&other, 1).await, [0; 0]);
    assert_eq!(stored(&other, 1).await, (vec![], false));
    assert!(
        !other.view.is_erased(UserKey(1)),
        "the other process has not sampled it"
    );
    assert_eq!(newest(&other, 1).await, [0; 0]);
    assert!(other.view.is_erased(UserKey(1)));
    assert_eq!(newest(&other, 2).await, [5, 4, 3, 2, 1]);
    // A sample knows it too.
    let third = bed.open().await;
    assert!(third.view.is_erased(UserKey(1)) && !third.view.is_erased(UserKey(2)));
    one.erase(UserKey(2)).await.unwrap();
    third.view.sample().await.unwrap();
    assert!(third.view.is_erased(UserKey(2)));
}

#[tokio::test]
async fn what_is_delivered_to_an_erased_user_is_dropped_by_merges() {
    let Some(bed) = bed().await else { return };
    let (one, other) = (bed.open().await, bed.open().await);
    fill(&bed, &one).await;
    one.erase(UserKey(1)).await.unwrap();
    bed.post(&other, 6, 9).await;
    assert_eq!(raw(&one, 1).await, [6], "it is in the tail");
    assert_eq!(newest(&one, 1).await, [0; 0]);
    assert!(merge::merge(&one.view, 0).await.unwrap());
    assert_eq!(raw(&one, 1).await, [0; 0]);
    assert_eq!(stored(&other, 1).await, (vec![], false));
    assert_eq!(newest(&one, 2).await, [6, 5, 4, 3, 2, 1]);
}

#[tokio::test]
async fn a_repair_after_a_loss_brings_nothing_back() {
    let Some(bed) = bed().await else { return };
    let (one, other) = (bed.open().await, bed.open().await);
    fill(&bed, &one).await;
    one.erase(UserKey(1)).await.unwrap();
    bed.redis.flush().await.unwrap();
    for timelines in [&other, &one] {
        assert_eq!(newest(timelines, 1).await, [0; 0]);
        assert_eq!(newest(timelines, 2).await, [5, 4, 3, 2, 1]);
    }
    bed.wait_for_repairs(&one).await;
    for timelines in [&one, &other] {
        assert_eq!(newest(timelines, 1).await, [0; 0]);
        assert_eq!(stored(timelines, 1).await, (vec![], false));
        assert_eq!(
            timelines.rebuild(&[UserKey(1)]).await.unwrap(),
            Rebuilt::default()
        );
    }
}

/// A rebuild has looked for an erasure, then the timeline is erased, then the rebuild writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rebuild_during_an_erasure_writes_nothing() {
    const USERS: u32 = 60;
    let Some(bed) = bed().await else { return };
    let (one, other) = (bed.open().await, Arc::new(bed.open().await));
    for user in 1..=USERS {
        bed.follow(user, 9, true).await;
    }
    for post in 1..=5 {
        bed.post(&one, post, 9).await;
    }
    let (keys, whole) = (one.view.keys.bucket(0), one.view.keys.whole(0));
    bed.redis
        .command(&["DEL", &keys.tail, &keys.body, &whole])
        .await
        .unwrap();
    for user in 1..=USERS {
        let rebuilding = {
            let other = Arc::clone(&other);
            tokio::spawn(async move { other.rebuild(&[UserKey(user)]).await })
        };
        for _ in 0..user % 8 {
            tokio::task::yield_now().await;
        }
        one.erase(UserKey(user)).await.unwrap();
        rebuilding.await.unwrap().unwrap();
        assert_eq!(raw(&one, user).await, [0; 0], "{user}");
        assert_eq!(stored(&other, user).await, (vec![], false), "{user}");
    }
}
