//! Inactive and drowning users.

use super::*;

async fn open(bed: &Bed) -> ClusterTimelines {
    let config = TimelinesConfig {
        active_days: 30,
        following_max: 4,
        ..config(&bed.redis.url())
    };
    bed.open_with(config).await
}

fn suppressed(delivered: &Delivered) -> Vec<(SuppressedReason, Vec<u32>)> {
    let sets = delivered.suppressed.iter();
    sets.map(|(reason, users)| (*reason, users.iter().map(|user| user.0).collect()))
        .collect()
}

#[tokio::test]
async fn an_inactive_user_is_not_written_and_gets_all_when_back() {
    let Some(bed) = bed().await else { return };
    let (worker, reader) = (open(&bed).await, open(&bed).await);
    for user in [1, 2] {
        bed.follow(user, 9, true).await;
    }
    bed.post(&worker, 1, 9).await;
    newest(&reader, 1).await;
    newest(&reader, 2).await;
    reader.view.sample().await.unwrap();
    worker.view.sample().await.unwrap();
    // 40 days pass for user 2: the timeline in Redis is complete, and stays so.
    bed.execute("UPDATE herald.timelines_activity SET day = day - 40 WHERE user_key = 2")
        .await;
    let (worker, reader) = (open(&bed).await, open(&bed).await);
    let followers = bed.plan(2, 9).await;
    let delivered = worker.deliver(PostId(2), followers.clone()).await.unwrap();
    assert_eq!(suppressed(&delivered), [(SuppressedReason::Inactive, vec![2])]);
    delivered.durable.await.unwrap();
    bed.settle(2, &followers).await;
    assert_eq!(stored(&reader, 1).await, (vec![1, 2], true));
    assert_eq!(stored(&reader, 2).await, (vec![1], false));
    assert_eq!(reader.rebuild(&[UserKey(2)]).await.unwrap(), Rebuilt::default());
    assert_eq!(newest(&reader, 2).await, [2, 1]);
    // The worker does not know yet that the user is back; the next read gets the post nevertheless.
    let followers = bed.plan(3, 9).await;
    let delivered = worker.deliver(PostId(3), followers).await.unwrap();
    assert_eq!(suppressed(&delivered), [(SuppressedReason::Inactive, vec![2])]);
    assert_eq!(newest(&reader, 2).await, [3, 2, 1]);
    assert!(!stored(&reader, 2).await.1);
    worker.view.sample().await.unwrap();
    let delivered = worker.deliver(PostId(4), recipients([2])).await.unwrap();
    assert!(suppressed(&delivered).is_empty());
    assert_eq!(stored(&reader, 2).await.0, [1, 2, 3, 4]);
}

/// A process that dies after it has recorded the return and before the rebuild leaves a timeline that is rebuilt.
#[tokio::test]
async fn a_return_that_was_broken_off_is_made_up_for() {
    let Some(bed) = bed().await else { return };
    let worker = open(&bed).await;
    bed.follow(2, 9, true).await;
    bed.post(&worker, 1, 9).await;
    newest(&worker, 2).await;
    worker.view.sample().await.unwrap();
    bed.execute("UPDATE herald.timelines_activity SET day = day - 40")
        .await;
    let worker = open(&bed).await;
    let followers = bed.plan(2, 9).await;
    worker.deliver(PostId(2), followers).await.unwrap();
    let dying = open(&bed).await;
    let mut lock = bed.postgres.begin().await.unwrap();
    sqlx::query("LOCK TABLE herald.pinned_posts IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *lock)
        .await
        .unwrap();
    let rebuilding = rebuild::rebuild(&dying.view, UserKey(2), read::Need::Return);
    tokio::time::timeout(Duration::from_millis(500), rebuilding)
        .await
        .unwrap_err();
    lock.rollback().await.unwrap();
    // This process sees the user as active.
    let reader = open(&bed).await;
    assert!(!reader.view.activity.is_dormant(UserKey(2)));
    assert_eq!(newest(&reader, 2).await, [2, 1]);
}

#[tokio::test]
async fn a_new_user_is_active_until_the_days_have_passed() {
    let Some(bed) = bed().await else { return };
    let worker = open(&bed).await;
    deliver(&worker, 1, &recipients([7])).await;
    worker.view.sample().await.unwrap();
    bed.execute("UPDATE herald.timelines_activity SET day = day - 29")
        .await;
    let delivered = open(&bed)
        .await
        .deliver(PostId(2), recipients([7]))
        .await
        .unwrap();
    assert!(suppressed(&delivered).is_empty());
    bed.execute("UPDATE herald.timelines_activity SET day = day - 2")
        .await;
    let delivered = open(&bed)
        .await
        .deliver(PostId(3), recipients([7]))
        .await
        .unwrap();
    assert_eq!(suppressed(&delivered), [(SuppressedReason::Inactive, vec![7])]);
}

#[tokio::test]
async fn a_sample_that_is_too_old_suppresses_nothing() {
    let Some(bed) = bed().await else { return };
    bed.execute("INSERT INTO herald.timelines_activity (user_key, day) VALUES (7, 1)")
        .await;
    let config = TimelinesConfig {
        active_days: 30,
        sample_interval_s: 1,
        ..config(&bed.redis.url())
    };
    let worker = bed.open_with(config).await;
    let delivered = worker.deliver(PostId(1), recipients([7])).await.unwrap();
    assert_eq!(suppressed(&delivered), [(SuppressedReason::Inactive, vec![7])]);
    // PostgreSQL can't be reached by the samples any more.
    for task in worker.tasks.lock().iter() {
        task.abort();
    }
    wait_until("the sample is too old", || async {
        let delivered = worker.deliver(PostId(2), recipients([7])).await.unwrap();
        suppressed(&delivered).is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_drowning_user_gets_the_same_part_from_all_workers_and_rebuilds() {
    let Some(bed) = bed().await else { return };
    let workers = [open(&bed).await, open(&bed).await];
    for author in 1..=8 {
        bed.follow(20, author, true).await;
    }
    bed.follow(21, 1, true).await;
    let counted = || async {
        let rows: Vec<(i64, i32)> =
            sqlx::query_as("SELECT user_key, following FROM herald.timelines_drowning")
                .fetch_all(bed.postgres.pool())
                .await
                .unwrap();
        rows
    };
    workers[0].view.state.count_drowning(-1, 1_000, 4).await.unwrap();
    assert_eq!(counted().await, [(20, 8)]);
    for worker in &workers {
        worker.view.sample().await.unwrap();
    }
    let mut kept = Vec::new();
    for post in 1..=60_u64 {
        let author = (post % 8) as u32 + 1;
        let followers = bed.plan(post, author).await;
        let mut outcomes = Vec::new();
        for worker in &workers {
            let delivered = worker.deliver(PostId(post), followers.clone()).await.unwrap();
            outcomes.push(suppressed(&delivered));
        }
        assert_eq!(outcomes[0], outcomes[1]);
        if outcomes[0].is_empty() {
            kept.insert(0, post);
        } else {
            assert_eq!(outcomes[0], [(SuppressedReason::Drowning, vec![20])]);
        }
    }
    assert!((15..=45).contains(&kept.len()), "{} of 60", kept.len());
    assert_eq!(newest(&workers[0], 20).await, kept);
    bed.redis.flush().await.unwrap();
    assert_eq!(newest(&workers[1], 20).await, kept);
    assert_eq!(newest(&workers[1], 21).await.len(), 7);
    for author in 1..=4 {
        bed.follow(20, author, false).await;
    }
    workers[0].view.state.count_drowning(-1, 1_000, 4).await.unwrap();
    assert!(counted().await.is_empty());
}

/// The timeline of an inactive user is complete in Redis, and lacks what was suppressed. It must not pass for complete
/// when the user counts as active again without having read.
#[tokio::test]
async fn a_user_whom_a_new_configuration_makes_active_gets_what_was_suppressed() {
    for active_days in [60, 0] {
        let Some(bed) = bed().await else { return };
        let worker = open(&bed).await;
        bed.follow(2, 9, true).await;
        bed.post(&worker, 1, 9).await;
        newest(&worker, 2).await;
        worker.view.sample().await.unwrap();
        // A process from before the change, which sees the user as active.
        let config = TimelinesConfig {
            active_days,
            ..config(&bed.redis.url())
        };
        let early = bed.open_with(config.clone()).await;
        bed.execute("UPDATE herald.timelines_activity SET day = day - 40")
            .await;
        let worker = open(&bed).await;
        let followers = bed.plan(2, 9).await;
        let delivered = worker.deliver(PostId(2), followers.clone()).await.unwrap();
        assert_eq!(suppressed(&delivered), [(SuppressedReason::Inactive, vec![2])]);
        let changed = bed.open_with(config).await;
        assert_eq!(stored(&changed, 2).await, (vec![1], false), "{active_days}");
        early.view.sample().await.unwrap();
        assert_eq!(stored(&early, 2).await, (vec![1], false), "{active_days}");
        assert_eq!(newest(&changed, 2).await, [2, 1], "{active_days}");
        // The return is recorded once.
        changed.view.sample().await.unwrap();
        assert!(!changed.view.activity.is_dormant(UserKey(2)));
        let delivered = changed.deliver(PostId(3), recipients([2])).await.unwrap();
        assert!(suppressed(&delivered).is_empty());
    }
}

/// What was delivered is rebuilt, and what was left out is not, although the user follows more or fewer authors now.
#[tokio::test]
async fn a_timeline_of_a_drowning_user_is_rebuilt_as_it_was_delivered() {
    let Some(bed) = bed().await else { return };
    let worker = open(&bed).await;
    for author in 1..=8 {
        bed.follow(20, author, true).await;
    }
    let mut kept = Vec::new();
    for post in 1..=60_u64 {
        if post == 30 {
            worker.view.state.count_drowning(-1, 1_000, 4).await.unwrap();
            worker.view.sample().await.unwrap();
        }
        let followers = bed.plan(post, (post % 8) as u32 + 1).await;
        let delivered = worker.deliver(PostId(post), followers.clone()).await.unwrap();
        if delivered.suppressed.is_empty() {
            kept.insert(0, post);
            bed.settle(post, &followers).await;
        } else {
            bed.settle_suppressed(post, &followers, &delivered.suppressed)
                .await;
        }
    }
    assert!((31..=55).contains(&kept.len()), "{} of 60", kept.len());
    assert_eq!(newest(&worker, 20).await, kept);
    for following in [800, 0] {
        bed.execute("DELETE FROM herald.timelines_drowning").await;
        if following > 0 {
            bed.execute("INSERT INTO herald.timelines_drowning (user_key, following) VALUES (20, 800)")
                .await;
        }
        worker.view.sample().await.unwrap();
        bed.redis.flush().await.unwrap();
        assert_eq!(newest(&worker, 20).await, kept, "follows {following}");
    }
}

#[tokio::test]
async fn reads_are_recorded_after_an_outage_of_the_records() {
    let Some(bed) = bed().await else { return };
    let timelines = open(&bed).await;
    newest(&timelines, 7).await;
    deliver(&timelines, 1, &recipients([8])).await;
    bed.execute("ALTER TABLE herald.timelines_activity RENAME TO away")
        .await;
    timelines.view.sample().await.unwrap_err();
    bed.execute("ALTER TABLE herald.away RENAME TO timelines_activity")
        .await;
    timelines.view.sample().await.unwrap();
    let users: Vec<i64> = sqlx::query_scalar("SELECT user_key FROM herald.timelines_activity ORDER BY 1")
        .fetch_all(bed.postgres.pool())
        .await
        .unwrap();
    assert_eq!(users, [7, 8]);
}
