//! Delivered, suppressed and expired pushes.

use std::{collections::HashMap, time::Duration};

use herald_mesh::{TopologyConfig, streams};
use herald_model::time::Timestamp;
use herald_push::Config;
use herald_push_endpoint::Policy;
use herald_push_sink::Kind;
use herald_store::PreferencesChange;

use crate::harness::{AUTHOR, Herald, local, numbers};

#[tokio::test]
async fn each_device_of_each_recipient_gets_one_push() {
    let herald = Herald::start().await;
    let [a, b, c] = [
        herald.user("a").await,
        herald.user("b").await,
        herald.user("c").await,
    ];
    herald.webhook(a, "a-hook").await;
    herald.browser(b, "b-browser").await;
    herald.webhook(c, "c-hook").await;
    herald.browser(c, "c-browser").await;
    let post = herald.post("hello").await;
    herald.archive(post, "hello").await;
    let chunk = herald.push(post, &[a, b, c]).await;

    assert_eq!(numbers(herald.settled(chunk).await), [3, 0, 0, 0, 0]);
    let once = |name: &str| (name.to_owned(), 1);
    let expected = HashMap::from(["a-hook", "b-browser", "c-hook", "c-browser"].map(once));
    assert_eq!(herald.received(), expected);
    let entries = herald.sink.entries();
    for entry in &entries {
        assert_eq!(
            (entry.post_id, &entry.author_id[..], &entry.text[..]),
            (post.0, AUTHOR, "hello")
        );
        assert_eq!(entry.recipient_id, entry.name[..1]);
    }
    let browser = entries.iter().find(|entry| entry.kind == Kind::WebPush).unwrap();
    assert_eq!(browser.message_id, format!("post-{post}"));
    assert_eq!(browser.urgency.as_deref(), Some("normal"));
    assert!((3_500..=3_600).contains(&browser.ttl_seconds.unwrap()));
    assert_eq!(herald.sink.summary().rejected, 0);

    let events = herald.events().await;
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].post_id, events[0].delivered_count), (post.0, 3));
    let metrics = herald.metrics.open_metrics();
    assert!(
        metrics.contains(r#"herald_push_recipients_total{lane="normal",state="delivered"} 3"#),
        "{metrics}"
    );
    assert!(
        metrics.contains(r#"herald_push_sends_total{provider="web_push",result="accepted"} 2"#),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_post_that_is_not_archived_yet_is_read_from_its_stream() {
    let herald = Herald::start().await;
    let user = herald.user("a").await;
    herald.webhook(user, "hook").await;
    let post = herald.post("from the stream").await;
    let chunk = herald.push(post, &[user]).await;
    assert_eq!(numbers(herald.settled(chunk).await), [1, 0, 0, 0, 0]);
    assert_eq!(herald.sink.entries()[0].text, "from the stream");
}

#[tokio::test]
async fn recipients_without_devices_or_who_disabled_pushes_or_muted_the_author_are_suppressed() {
    let herald = Herald::start().await;
    let author = herald.user(AUTHOR).await;
    let [no_device, disabled, muted, active] = [
        herald.user("no_device").await,
        herald.user("disabled").await,
        herald.user("muted").await,
        herald.user("active").await,
    ];
    for (user, name) in [(disabled, "disabled"), (muted, "muted"), (active, "active")] {
        herald.webhook(user, name).await;
    }
    let change = PreferencesChange {
        push_enabled: Some(false),
        ..PreferencesChange::default()
    };
    herald.stores.preferences.update(disabled, &change).await.unwrap();
    let change = PreferencesChange {
        mute: vec![author],
        ..PreferencesChange::default()
    };
    herald.stores.preferences.update(muted, &change).await.unwrap();
    let post = herald.post("hello").await;
    let chunk = herald.push(post, &[no_device, disabled, muted, active]).await;
    assert_eq!(numbers(herald.settled(chunk).await), [1, 3, 0, 0, 0]);
    assert_eq!(herald.received(), HashMap::from([("active".to_owned(), 1)]));
    let events = herald.events().await;
    assert_eq!((events[0].delivered_count, events[0].suppressed_count), (1, 3));
}

#[tokio::test]
async fn an_expired_push_is_not_sent() {
    let herald = Herald::start().await;
    let user = herald.user("a").await;
    herald.webhook(user, "hook").await;
    let post = herald.post("old").await;
    let chunk = herald.push_until(post, &[user], Timestamp::now()).await;
    assert_eq!(numbers(herald.settled(chunk).await), [0, 0, 1, 0, 0]);
    assert!(herald.received().is_empty());
}

#[tokio::test]
async fn deleted_and_missing_posts_are_not_sent() {
    let herald = Herald::start().await;
    let user = herald.user("a").await;
    herald.webhook(user, "hook").await;
    let post = herald.post("oops").await;
    herald.archive(post, "oops").await;
    herald.delete(post).await;
    let chunk = herald.push(post, &[user]).await;
    assert_eq!(numbers(herald.settled(chunk).await), [0, 1, 0, 0, 0]);

    let missing = herald_model::PostId(herald.mesh.last_sequence(streams::POSTS).await.unwrap() + 10);
    let chunk = herald.push(missing, &[user]).await;
    assert_eq!(numbers(herald.settled(chunk).await), [0, 1, 0, 0, 0]);
    assert!(herald.received().is_empty());
}

#[tokio::test]
async fn a_private_endpoint_is_not_called_unless_allowed() {
    let endpoints = Policy {
        allow_http: true,
        allow_private: false,
    };
    let config = Config { endpoints, ..local() };
    let herald = Herald::start_with(config, TopologyConfig::default()).await;
    let user = herald.user("a").await;
    herald.webhook(user, "hook").await;
    let post = herald.post("hello").await;
    let chunk = herald.push(post, &[user]).await;
    assert_eq!(numbers(herald.settled(chunk).await), [0, 0, 0, 0, 1]);
    assert!(herald.received().is_empty());
}

#[tokio::test]
async fn a_shutdown_finishes_chunks_in_flight() {
    let mut herald = Herald::start().await;
    let user = herald.user("a").await;
    herald.webhook(user, "hook").await;
    let post = herald.post("hello").await;
    let chunk = herald.push(post, &[user]).await;
    herald.sink.wait_for(1).await;
    tokio::time::timeout(Duration::from_secs(20), herald.stop())
        .await
        .unwrap();
    assert_eq!(numbers(herald.settled(chunk).await), [1, 0, 0, 0, 0]);
}
