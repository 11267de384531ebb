//! Undecodable messages: each is terminated once, recorded as an advisory, and doesn't block other messages.

use std::time::Duration;

use async_nats::jetstream;
use futures::StreamExt;
use harness::{Herald, Options, until};
use herald_proto::v1;

use crate::{HERALD, audit::audit};

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn undecodable_messages_are_terminated_with_a_reason() {
    let herald = Herald::start(HERALD, Options::default()).await;
    let clients = herald.clients().await;
    let follow = v1::Follow {
        follower_id: "ann".into(),
        author_id: "bob".into(),
        notify: Some(true),
    };
    let request = v1::FollowRequest { follow: Some(follow) };
    clients.graph().follow(request).await.unwrap();

    let broker = jetstream::new(herald.broker().await);
    // Field 1 is a string whose length exceeds the message: no valid message starts like this.
    let garbage = b"\x0a\xff\xff\xff\xff\x0fgarbage";
    let terminations = [
        // fanout, archive and analytics each terminate it.
        ("post.v1.created.normal", 3),
        ("post.v1.deleted.low", 2),
        ("fanout.v1.slice.high", 1),
        ("timeline.v1.deliver.normal", 1),
        ("timeline.v1.backfill.low", 1),
        ("push.v1.deliver.high", 1),
        ("event.v1.settled.timeline", 1),
    ];
    for (subject, _) in terminations {
        broker
            .publish(subject, garbage.as_slice().into())
            .await
            .unwrap()
            .await
            .unwrap();
    }

    let expected: u64 = terminations.iter().map(|(_, count)| count).sum();
    until("each reader has terminated each message", LIMIT, || async {
        let stream = broker.get_stream("ADVISORIES").await.unwrap();
        stream.cached_info().state.messages >= expected
    })
    .await;
    let stream = broker.get_stream("ADVISORIES").await.unwrap();
    let config = jetstream::consumer::pull::OrderedConfig::default();
    let advisories = stream.create_consumer(config).await.unwrap();
    let advisories: Vec<_> = advisories
        .messages()
        .await
        .unwrap()
        .take(usize::try_from(expected).unwrap())
        .collect()
        .await;
    for advisory in advisories {
        let advisory: serde_json::Value = serde_json::from_slice(&advisory.unwrap().payload).unwrap();
        assert_eq!(advisory["deliveries"], 1, "never retried: {advisory}");
        assert!(
            advisory["reason"].as_str().unwrap().contains("undecodable"),
            "{advisory}"
        );
    }

    // The mesh continues, and the sequences of the garbage in POSTS are no posts.
    let posted = herald
        .cli(&["post", "--author", "bob", "--text", "after it"])
        .await;
    assert_eq!(posted["post_id"], 3, "{posted}");
    herald.cli(&["delivery", "3", "--wait"]).await;
    let timeline = herald.cli(&["timeline", "ann"]).await;
    assert_eq!(timeline["entries"][0]["post_id"], 3, "{timeline}");
    let refused = clients
        .posts()
        .get_post(v1::GetPostRequest { post_id: 1 })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), tonic::Code::NotFound, "{refused:?}");
    until("no consumer has messages left", LIMIT, || clients.is_idle()).await;
    // The dead letters account for all of the garbage.
    let (done, lines) = audit(&herald, &[]).await;
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(lines[0]["summary"]["dead_post_count"], 1, "{lines:?}");
}
