//! Lost writes are noticed and repaired.

use super::{script::ScriptCall, *};

async fn losses(bed: &Bed, open: bool) -> i64 {
    let sql = if open {
        "SELECT count(*) FROM herald.timelines_losses WHERE repaired_at IS NULL"
    } else {
        "SELECT count(*) FROM herald.timelines_losses"
    };
    sqlx::query_scalar(sql)
        .fetch_one(bed.postgres.pool())
        .await
        .unwrap()
}

async fn until_repaired(bed: &Bed) {
    wait_until("the loss is recorded", || async { losses(bed, false).await > 0 }).await;
    wait_until("the loss is repaired", || async { losses(bed, true).await == 0 }).await;
}

/// The beat of a shard, after the next one has replaced it.
async fn beat_before_another(bed: &Bed, beat: &str) -> String {
    let before = bed.redis.text(&["GET", beat]).await.unwrap();
    wait_until("a later beat", || async {
        bed.redis.text(&["GET", beat]).await.unwrap() != before
    })
    .await;
    before
}

/// Loses the deliveries that are not merged yet.
async fn delete_tail(bed: &Bed, timelines: &ClusterTimelines) {
    let tail = timelines.view.keys.bucket(0).tail;
    bed.redis.command(&["DEL", &tail]).await.unwrap();
}

/// Redis is set back to an earlier state: it loses a delivery that was acknowledged, of a timeline that is complete.
async fn set_back(bed: &Bed, timelines: &ClusterTimelines) {
    bed.follow(1, 9, true).await;
    bed.follow(500, 9, true).await;
    bed.post(timelines, 1, 9).await;
    newest(timelines, 1).await;
    assert_eq!(stored(timelines, 1).await, (vec![1], true));
    bed.redis.command(&["SAVE"]).await.unwrap();
    std::fs::copy(bed.redis.dir().join("dump.rdb"), bed.redis.dir().join("old.rdb")).unwrap();
    bed.post(timelines, 2, 9).await;
    bed.ledger
        .record_backfill(&[PostId(7)], &recipients([500]))
        .await
        .unwrap();
    deliver(timelines, 7, &recipients([500])).await;
    bed.redis.stop().await.unwrap();
    std::fs::copy(bed.redis.dir().join("old.rdb"), bed.redis.dir().join("dump.rdb")).unwrap();
    bed.redis.restart().await.unwrap();
}

fn without_append_only_file() -> RedisOptions {
    RedisOptions {
        append_only: false,
        ..RedisOptions::default()
    }
}

#[tokio::test]
async fn a_restart_from_an_older_file_is_noticed_and_repaired() {
    let redis = Redis::start(without_append_only_file()).await;
    let Some(redis) = required("the tests of timelines in Redis", redis) else {
        return;
    };
    let Some(bed) = bed_with(redis).await else { return };
    let timelines = bed.open().await;
    set_back(&bed, &timelines).await;
    until_repaired(&bed).await;
    wait_until("this process knows it", || async {
        timelines.view.monitor.open().is_empty()
    })
    .await;
    assert_eq!(stored(&timelines, 1).await, (vec![1, 2], true));
    assert_eq!(stored(&timelines, 500).await.0, [1, 2, 7]);
    assert_eq!(losses(&bed, false).await, 1);
}

#[tokio::test]
async fn a_beat_that_was_set_back_is_noticed_and_repaired() {
    let Some(bed) = bed().await else { return };
    let timelines = bed.open().await;
    bed.follow(1, 9, true).await;
    bed.post(&timelines, 1, 9).await;
    newest(&timelines, 1).await;
    let beat = timelines.view.keys.beat(0);
    let before = beat_before_another(&bed, &beat).await;
    bed.post(&timelines, 2, 9).await;
    // As after a fail-over to a replica that has neither the delivery nor the last beats.
    delete_tail(&bed, &timelines).await;
    bed.redis.command(&["SET", &beat, &before]).await.unwrap();
    until_repaired(&bed).await;
    assert_eq!(stored(&timelines, 1).await.0, [1, 2]);
}

/// Until the repair, a reader's timeline is rebuilt, and audits don't call it complete.
#[tokio::test]
async fn a_reader_gets_what_is_not_repaired_yet() {
    let Some(bed) = bed().await else { return };
    let timelines = bed.open().await;
    bed.follow(1, 9, true).await;
    bed.post(&timelines, 1, 9).await;
    timelines.rebuild(&[UserKey(1)]).await.unwrap();
    bed.post(&timelines, 2, 9).await;
    delete_tail(&bed, &timelines).await;
    assert_eq!(newest(&timelines, 1).await, [1]);
    // The lease of the repair is held by another process, which is paused.
    let leases = PostgresLeases::new(bed.postgres.clone());
    wait_until("the lease is free", || async {
        let lease = leases
            .acquire("timelines-repair", "another", Duration::from_mins(1))
            .await;
        lease.unwrap().is_some()
    })
    .await;
    bed.execute(
        "INSERT INTO herald.timelines_losses (first_slot, last_slot, since, found_at) VALUES (0, 16383, 1, 1)",
    )
    .await;
    wait_until("this process knows it", || async {
        timelines.view.monitor.is_suspect(0)
    })
    .await;
    assert!(!stored(&timelines, 1).await.1);
    assert_eq!(newest(&timelines, 1).await, [2, 1]);
}

/// Nobody has to read a timeline to make it complete, until Redis is flushed.
#[tokio::test]
async fn timelines_of_a_new_installation_are_complete_until_a_flush() {
    let Some(bed) = bed().await else { return };
    let timelines = bed.open().await;
    bed.follow(1, 9, true).await;
    assert_eq!(stored(&timelines, 1).await, (vec![], true));
    bed.post(&timelines, 1, 9).await;
    assert_eq!(stored(&timelines, 1).await, (vec![1], true));
    merge::merge(&timelines.view, 0).await.unwrap();
    assert_eq!(stored(&timelines, 1).await, (vec![1], true));
    // The mark is not made again by a process that starts later.
    bed.redis.flush().await.unwrap();
    assert!(!stored(&timelines, 1).await.1);
    let later = bed.open().await;
    bed.wait_for_repairs(&later).await;
    bed.post(&later, 2, 9).await;
    assert!(!stored(&later, 1).await.1);
    assert!(!stored(&later, 2).await.1);
    assert_eq!(newest(&later, 1).await, [2, 1]);
    assert_eq!(stored(&later, 1).await, (vec![1, 2], true));
}

/// A database that has delivered before gets an empty Redis.
#[tokio::test]
async fn timelines_in_another_redis_are_not_complete() {
    let Some(bed) = bed().await else { return };
    bed.follow(1, 9, true).await;
    bed.plan(1, 9).await;
    let timelines = bed.open().await;
    assert!(!stored(&timelines, 1).await.1);
    assert_eq!(newest(&timelines, 1).await, [1]);
}

#[tokio::test]
async fn what_was_delivered_before_a_flush_is_rebuilt() {
    let Some(bed) = bed().await else { return };
    let timelines = bed.open().await;
    bed.follow(1, 9, true).await;
    bed.post(&timelines, 1, 9).await;
    bed.redis.flush().await.unwrap();
    let beat = timelines.view.keys.beat(0);
    wait_until("a new beat", || async {
        bed.redis.command(&["EXISTS", &beat]).await.unwrap() == redis::Value::Int(1)
    })
    .await;
    assert_eq!(newest(&timelines, 1).await, [1]);
}

/// As after a fail-over to a replica that has a timeline, and neither the last delivery nor any beat.
#[tokio::test]
async fn a_missing_beat_is_noticed_and_repaired() {
    let Some(bed) = bed().await else { return };
    let timelines = bed.open().await;
    bed.follow(1, 9, true).await;
    bed.post(&timelines, 1, 9).await;
    newest(&timelines, 1).await;
    bed.post(&timelines, 2, 9).await;
    let (tail, beat) = (timelines.view.keys.bucket(0).tail, timelines.view.keys.beat(0));
    bed.redis.command(&["DEL", &tail, &beat]).await.unwrap();
    until_repaired(&bed).await;
    assert_eq!(stored(&timelines, 1).await.0, [1, 2]);
}

/// A backfill that waited for hours, because Redis was away, is delivered long after its first record.
#[tokio::test]
async fn a_late_backfill_is_repaired() {
    let Some(bed) = bed().await else { return };
    let timelines = bed.open().await;
    let users = recipients([1]);
    bed.ledger.record_backfill(&[PostId(7)], &users).await.unwrap();
    bed.execute("UPDATE herald.backfills SET at = at - interval '3 hours'")
        .await;
    let beat = timelines.view.keys.beat(0);
    let before = beat_before_another(&bed, &beat).await;
    bed.ledger.record_backfill(&[PostId(7)], &users).await.unwrap();
    deliver(&timelines, 7, &users).await;
    delete_tail(&bed, &timelines).await;
    bed.redis.command(&["SET", &beat, &before]).await.unwrap();
    until_repaired(&bed).await;
    assert_eq!(stored(&timelines, 1).await.0, [7]);
}

/// The worker was slow: it records the outcome after the repair of the loss that took the delivery.
#[tokio::test]
async fn a_delivery_is_not_intact_if_a_loss_was_repaired_before_its_outcome_was_recorded() {
    let Some(bed) = bed().await else { return };
    let timelines = bed.open().await;
    let another = bed.open().await;
    bed.follow(1, 9, true).await;
    bed.post(&timelines, 1, 9).await;
    newest(&timelines, 1).await;
    let followers = bed.plan(2, 9).await;
    let delivered = timelines.deliver(PostId(2), followers.clone()).await.unwrap();
    delivered.durable.await.unwrap();
    assert!(timelines.is_intact(delivered.losses).await.unwrap());
    let (tail, beat) = (timelines.view.keys.bucket(0).tail, timelines.view.keys.beat(0));
    bed.redis.command(&["DEL", &tail, &beat]).await.unwrap();
    until_repaired(&bed).await;
    bed.settle(2, &followers).await;
    assert_eq!(stored(&timelines, 1).await.0, [1]);
    assert!(!timelines.is_intact(delivered.losses).await.unwrap());
    let again = timelines.deliver(PostId(2), followers.clone()).await.unwrap();
    again.durable.await.unwrap();
    assert!(timelines.is_intact(again.losses).await.unwrap());
    assert_eq!(stored(&timelines, 1).await.0, [1, 2]);
    // A process that doesn't know of the loss yet delivers once more, and knows it then.
    let unaware = delivered.losses;
    assert!(!another.is_intact(unaware).await.unwrap());
    assert_eq!(another.view.monitor.losses(), 1);
}

/// A message that is redelivered long after its outcome was recorded is on the timelines since then, not since the
/// record.
#[tokio::test]
async fn a_late_redelivery_is_repaired() {
    let Some(bed) = bed().await else { return };
    let timelines = bed.open().await;
    bed.follow(1, 9, true).await;
    let followers = bed.post(&timelines, 1, 9).await;
    bed.execute("UPDATE herald.ledger_outcomes SET last_delivered_at = last_delivered_at - 3600000000")
        .await;
    newest(&timelines, 1).await;
    let beat = timelines.view.keys.beat(0);
    let before = beat_before_another(&bed, &beat).await;
    deliver(&timelines, 1, &followers).await;
    bed.settle(1, &followers).await;
    let keys = timelines.view.keys.bucket(0);
    bed.redis.command(&["DEL", &keys.tail]).await.unwrap();
    bed.redis
        .command(&["HDEL", &keys.body, &pair::index(UserKey(1)).to_string()])
        .await
        .unwrap();
    bed.redis.command(&["SET", &beat, &before]).await.unwrap();
    until_repaired(&bed).await;
    assert_eq!(stored(&timelines, 1).await.0, [1]);
}

/// Nobody learns of a restart of Redis between two calls, although each connection to it is broken.
#[tokio::test]
async fn no_call_fails_after_a_restart_of_redis() {
    let Some(bed) = bed().await else { return };
    let timelines = bed.open().await;
    bed.follow(1, 9, true).await;
    let followers = bed.post(&timelines, 1, 9).await;
    for _ in 0..3 {
        bed.redis.restart().await.unwrap();
        deliver(&timelines, 1, &followers).await;
        assert_eq!(newest(&timelines, 1).await, [1]);
        bed.redis.restart().await.unwrap();
        timelines.rebuild(&[UserKey(1)]).await.unwrap();
        assert_eq!(newest(&timelines, 1).await, [1]);
    }
}

#[tokio::test]
async fn everything_resumes_after_a_restart_of_redis() {
    let Some(bed) = bed().await else { return };
    let timelines = bed.open().await;
    bed.follow(1, 9, true).await;
    bed.post(&timelines, 1, 9).await;
    newest(&timelines, 1).await;
    bed.redis.kill().await.unwrap();
    let failed = timelines.deliver(PostId(2), recipients([1])).await;
    assert_eq!(failed.err().unwrap().kind(), crate::ErrorKind::Unavailable);
    let failed = timelines.newest(UserKey(1), None, 10).await;
    assert_eq!(failed.err().unwrap().kind(), crate::ErrorKind::Unavailable);
    bed.redis.restart().await.unwrap();
    wait_until("deliveries succeed", || async {
        timelines.deliver(PostId(2), recipients([1])).await.is_ok()
    })
    .await;
    wait_until("reads succeed", || async {
        timelines
            .newest(UserKey(1), None, 10)
            .await
            .is_ok_and(|page| page.posts == [PostId(2), PostId(1)])
    })
    .await;
}

/// Processes that start together each write a first beat. The slower one has the older time, and must not make it look
/// as if Redis had lost the newer beat.
#[tokio::test]
async fn a_beat_never_goes_back() {
    let Some(bed) = bed().await else { return };
    let timelines = bed.open().await;
    let view = &timelines.view;
    wait_until("the first beat is recorded", || async {
        !view.state.shards().await.unwrap().is_empty()
    })
    .await;
    let shard = view.state.shards().await.unwrap().remove(0);
    let key = view.keys.beat(shard.range.first);
    let older = shard.beat - 1_000_000;
    let call = ScriptCall {
        script: &view.scripts.beat,
        keys: &[&key, &view.keys.whole(shard.range.first)],
        arguments: ["", &older.to_string(), &view.ttl_s.to_string(), "1"]
            .map(|argument| argument.as_bytes().to_vec())
            .into(),
    };
    view.reader
        .run_script(shard.range.first, &call, "write the beat")
        .await
        .unwrap();
    let beat: String = merge::read_value(bed.redis.command(&["GET", &key]).await.unwrap()).unwrap();
    assert!(beat.parse::<i64>().unwrap() >= shard.beat, "{beat}");
}
