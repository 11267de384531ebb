//! Every span of docs/TRACES.md, exported by one mesh on a cluster of nats-servers.

use async_nats::jetstream::{self, AckKind, consumer::PullConsumer};
use futures::StreamExt as _;
use harness::{NatsCluster, Span, until};
use herald_push_sink::InjectedFailure;
use http::StatusCode;

use super::{
    AUTHOR, LIMIT, Traced, assert_no_private_data,
    documented::{assert_documented, unseen},
    reader, start_with,
};

/// More than a slice, so that the post has a second one.
const FOLLOWERS: usize = 1_030;
const SLICE_RECIPIENTS_MAX: &str = "1024";

#[tokio::test(flavor = "multi_thread")]
async fn every_documented_span_is_exported() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    // Between servers there are more hops.
    let cluster = NatsCluster::start_direct(dir.path(), 3).await;
    let variables = [
        ("HERALD_TELEMETRY__BROKER_HOPS", "true"),
        ("HERALD_FANOUT__SLICE_RECIPIENTS_MAX", SLICE_RECIPIENTS_MAX),
        ("HERALD_PUSH__RETRY_DELAY_MS_BASE", "1000"),
        ("HERALD_TOPOLOGY__CONSUMERS__TIMELINE__ATTEMPTS_MAX", "2"),
        ("HERALD_TOPOLOGY__CONSUMERS__TIMELINE__FAULT_ATTEMPTS_MAX", "2"),
        // Nobody reads the consumers of the lane `high`, so that the test can use up the attempts at a message.
        ("HERALD_LANES", "[\"normal\",\"low\"]"),
    ];
    let arguments = vec!["--nats-url".into(), cluster.urls()];
    let Some(traced) = start_with(&variables, arguments).await else {
        return;
    };
    traced.follow(FOLLOWERS, 2).await;
    // One device answers at the second attempt, the other one at a redrive.
    for (n, status, times) in [
        (0, StatusCode::SERVICE_UNAVAILABLE, Some(1)),
        (1, StatusCode::BAD_REQUEST, None),
    ] {
        let failure = InjectedFailure {
            status,
            retry_after: None,
            times,
        };
        traced.sink.fail(&reader(n), failure);
    }
    let (_, post) = traced.post(true).await;
    let (_, deleted) = traced.post(true).await;
    traced
        .herald
        .cli(&["delete", &deleted.to_string(), "--any-author"])
        .await;
    // A new follower gets the author's posts.
    traced.herald.cli(&["follow", &reader(FOLLOWERS), AUTHOR]).await;
    use_up_attempts(&cluster).await;
    until("the dead letters are listed", LIMIT, async || {
        let listed = traced.herald.cli(&["dlq", "list"]).await;
        let listed = listed["dead_letters"].as_array().cloned().unwrap_or_default();
        let has = |field: &str, value: &str| listed.iter().any(|one| one[field] == value);
        has("cause", "max_deliveries") && listed.iter().any(|one| one["post_id"] == post)
    })
    .await;
    traced.sink.recover(&reader(1));
    traced.herald.cli(&["dlq", "redrive", "--stream", "PUSH"]).await;

    let mut spans = Vec::new();
    let mut missing = vec!["any".to_owned()];
    let seeing = async {
        while !missing.is_empty() {
            spans = all_spans(&traced).await;
            missing = unseen(&spans);
        }
    };
    let seen = tokio::time::timeout(LIMIT, seeing).await;
    assert!(
        seen.is_ok(),
        "docs/TRACES.md documents what is not exported: {missing:?}"
    );
    assert_documented(&spans);
    assert_no_private_data(&spans);
}

/// Takes a message as often as its consumer allows, without a word about its end.
async fn use_up_attempts(cluster: &NatsCluster) {
    let broker = jetstream::new(cluster.client().await.expect("a server answers"));
    let sent = broker.publish("timeline.v1.deliver.high", "x".into()).await;
    sent.expect("a stream").await.expect("a stored message");
    let stream = broker.get_stream("TIMELINE").await.expect("a stream");
    let consumer: PullConsumer = stream.get_consumer("timeline-high").await.expect("a consumer");
    let mut messages = consumer.messages().await.expect("a subscription");
    for _ in 0..2 {
        let message = messages.next().await.expect("a message").expect("a message");
        message.ack_with(AckKind::Nak(None)).await.expect("an answer");
    }
    let advisories = async || {
        let stream = broker.get_stream("ADVISORIES").await.expect("a stream");
        let filter = stream
            .info_with_subjects("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>")
            .await;
        filter.expect("the subjects").count().await > 0
    };
    until("the server tells that it gave up the message", LIMIT, advisories).await;
}

async fn all_spans(traced: &Traced) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for service in traced.jaeger.services().await {
        spans.extend(traced.jaeger.traces_of(&service).await);
    }
    spans
}
