//! Traps of streams and consumers. No process runs, so what waits is unread, and the store can't be asked.

use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use futures::StreamExt as _;
use harness::until;

use super::{Broker, LIMIT, Report};

#[tokio::test]
async fn without_a_trap_there_are_notes_only() {
    let broker = Broker::start().await;
    let report = broker.doctor().await;
    report.assert_ids(&[]);
    // Nothing waits, and one server writes to its disk every two minutes.
    assert_eq!(report.notes(), ["consumer-unread", "fsync-interval"]);
    assert!(
        report.what("fsync-interval").ends_with("every 2 min"),
        "{report:?}"
    );
    let unchecked = report.unchecked();
    for id in [
        "stream-lost-tail",
        "store-older",
        "chunks-differ",
        "topology-differs",
    ] {
        assert!(unchecked.contains(&id), "{unchecked:?}");
    }
    assert!(!unchecked.contains(&"stream-frozen"), "{unchecked:?}");
    let without = Report::of(&["--data-dir", "/nonexistent"], &broker.variables).await;
    assert!(without.unchecked().contains(&"stream-frozen"), "{without:?}");
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let broker = Broker::start().await;
    broker.jetstream.delete_stream("ADVISORIES").await.unwrap();
    let report = broker.doctor().await;
    report.assert_ids(&["stream-missing"]);
    assert_eq!(report.what("stream-missing"), "stream ADVISORIES does not exist");

    broker.apply().await;
    let stream = broker.jetstream.get_stream("PUSH").await.unwrap();
    stream.delete_consumer("push-high").await.unwrap();
    let report = broker.doctor().await;
    report.assert_ids(&["consumer-missing"]);
    assert!(
        report.what("consumer-missing").contains("push-high"),
        "{report:?}"
    );
}

#[tokio::test]
async fn advisories_that_came_after_messages_are_late() {
    let broker = Broker::start().await;
    // Without messages of the time before, nothing can have been given up.
    broker.jetstream.delete_stream("ADVISORIES").await.unwrap();
    broker.apply().await;
    broker.doctor().await.assert_ids(&[]);

    broker
        .publish("timeline.v1.deliver.low", b"x".into())
        .await
        .unwrap();
    broker.jetstream.delete_stream("ADVISORIES").await.unwrap();
    broker.apply().await;
    let report = broker.doctor().await;
    report.assert_ids(&["advisories-late", "consumer-unread"]);
    assert!(
        report.what("advisories-late").contains("timeline-low"),
        "{report:?}"
    );
}

#[tokio::test]
async fn a_stream_that_differs_is_compared_with_what_its_users_need() {
    let broker = Broker::start().await;
    broker
        .change_stream("SLICES", |config| {
            config.max_age = Duration::from_mins(10);
            config.duplicate_window = Duration::from_mins(2);
        })
        .await;
    let report = broker.doctor().await;
    report.assert_ids(&["retention-shorter-than-retries"]);
    let what = report.what("retention-shorter-than-retries");
    assert!(
        what.starts_with("stream SLICES removes messages after 10 min, and the 1,000 attempts of"),
        "{what}"
    );
    broker.apply().await;

    broker
        .change_stream("POSTS", |config| {
            config.duplicate_window = Duration::from_secs(10);
        })
        .await;
    let report = broker.doctor().await;
    report.assert_ids(&["dedupe-window-short"]);
    assert!(
        report.what("dedupe-window-short").starts_with("stream POSTS"),
        "{report:?}"
    );
    broker.apply().await;

    broker
        .change_stream("EVENTS", |config| config.max_bytes = 1 << 20)
        .await;
    let report = broker.doctor().await;
    report.assert_ids(&["stream-differs"]);
    assert!(report.what("stream-differs").contains("max_bytes"), "{report:?}");
    broker.apply().await;
    broker.doctor().await.assert_ids(&[]);
}

#[tokio::test]
async fn a_consumer_that_differs_is_compared_with_its_workers() {
    let broker = Broker::start().await;
    let second = Duration::from_secs(1);
    let refused = broker
        .change_consumer("PUSH", "push-low", |config| {
            config.max_deliver = 2;
            config.backoff = vec![second, second * 2, second * 3];
        })
        .await;
    assert!(
        refused.is_err(),
        "the server refuses a back-off that is longer than max_deliver"
    );
    broker
        .change_consumer("PUSH", "push-low", |config| {
            config.backoff = vec![second, second * 2];
        })
        .await
        .unwrap();
    let report = broker.doctor().await;
    report.assert_ids(&["consumer-backoff"]);
    assert!(report.what("consumer-backoff").contains("push-low"), "{report:?}");

    let broker = Broker::start().await;
    broker
        .change_consumer("TIMELINE", "timeline-high", |config| {
            config.max_ack_pending = 1_000;
        })
        .await
        .unwrap();
    let report = broker.doctor().await;
    report.assert_ids(&["ack-pending-small"]);
    let what = report.what("ack-pending-small");
    assert!(
        what.contains("timeline-high") && what.ends_with("has room for 2,048"),
        "{what}"
    );

    broker.apply().await;
    broker
        .change_consumer("POSTS", "archive", |config| {
            config.ack_wait = Duration::from_mins(5);
        })
        .await
        .unwrap();
    let report = broker.doctor().await;
    report.assert_ids(&["consumer-differs"]);
    assert!(report.what("consumer-differs").contains("ack_wait"), "{report:?}");
}

#[tokio::test]
async fn a_consumer_that_nobody_reads_is_an_error_if_messages_wait() {
    let broker = Broker::start().await;
    broker.publish("push.v1.deliver.high", b"x".into()).await.unwrap();
    let report = broker.doctor().await;
    report.assert_ids(&["consumer-unread"]);
    let what = report.what("consumer-unread");
    assert_eq!(
        what,
        "nobody reads consumer push-high of stream PUSH, and 1 message waits for it"
    );
    // The others are a note.
    assert!(report.notes().contains(&"consumer-unread"), "{report:?}");
}

#[tokio::test]
async fn fan_out_that_pauses_is_a_note() {
    let broker = Broker::start_with(&[("HERALD_FANOUT__GATE__PENDING_CHUNKS_MAX", "2")]).await;
    broker.publish("fanout.v1.slice.low", b"x".into()).await.unwrap();
    let report = broker.doctor().await;
    assert!(report.what("consumer-unread").contains("slice-low"), "{report:?}");
    for _ in 0..2 {
        broker.publish("push.v1.deliver.low", b"x".into()).await.unwrap();
    }
    let report = broker.doctor().await;
    report.assert_ids(&["consumer-unread"]);
    assert!(report.what("consumer-unread").contains("push-low"), "{report:?}");
    assert!(report.notes().contains(&"consumer-paused"), "{report:?}");
    assert_eq!(
        report.what("consumer-paused"),
        "fan-out doesn't read consumer slice-low of stream SLICES for now: 2 chunks wait for push-low"
    );
}

#[tokio::test]
async fn workers_with_full_hands_are_a_warning() {
    let broker = Broker::start_with(&[("HERALD_PUSH__CHUNKS_IN_FLIGHT_MAX", "1")]).await;
    for _ in 0..2 {
        broker.publish("push.v1.deliver.high", b"x".into()).await.unwrap();
    }
    let stream = broker.jetstream.get_stream("PUSH").await.unwrap();
    let consumer: PullConsumer = stream.get_consumer("push-high").await.unwrap();
    let mut messages = consumer.fetch().max_messages(1).messages().await.unwrap();
    let _held = messages.next().await.unwrap().unwrap();
    let report = broker.doctor().await;
    report.assert_ids(&["consumer-busy"]);
    let what = report.what("consumer-busy");
    assert!(
        what.contains("push-high of stream PUSH have 1 message in hand") && what.ends_with("and 1 wait"),
        "{what}"
    );
}

#[tokio::test]
async fn an_archive_that_is_behind_the_dedupe_window_is_found() {
    let broker = Broker::start_with(&[("HERALD_TOPOLOGY__DEDUPE_WINDOW_SECONDS", "2")]).await;
    broker
        .publish("post.v1.created.normal", b"x".into())
        .await
        .unwrap();
    until("the post is older than the window", LIMIT, async || {
        broker.doctor().await.ids().contains(&"archive-behind")
    })
    .await;
    broker
        .doctor()
        .await
        .assert_ids(&["archive-behind", "consumer-unread"]);
}
