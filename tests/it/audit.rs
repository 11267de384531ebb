//! `herald audit`: it reports no findings on a correct mesh, and it reports and repairs lost deliveries.

use std::time::Duration;

use async_nats::jetstream;
use harness::{Herald, Options, Output, run, until};
use herald_proto::v1;
use serde_json::Value;

use crate::{HERALD, surface::http_get};

const LIMIT: Duration = Duration::from_secs(30);

/// Runs `herald audit`; returns the output and its parsed JSON lines.
pub(crate) async fn audit(herald: &Herald, arguments: &[&str]) -> (Output, Vec<Value>) {
    let mut all = vec!["audit", "--output", "json"];
    all.extend(arguments);
    let done = run(
        HERALD,
        &all,
        &[("HERALD_OPERATOR_SERVER", &herald.operator_url())],
    )
    .await;
    let lines = done
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    (done, lines)
}

async fn follow(herald: &Herald, followers: &[&str], author: &str) {
    let clients = herald.clients().await;
    for follower in followers {
        let follow = v1::Follow {
            follower_id: (*follower).into(),
            author_id: author.into(),
            notify: None,
        };
        let request = v1::FollowRequest { follow: Some(follow) };
        clients.graph().follow(request).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_deliveries_are_reported_and_repaired() {
    let herald = Herald::start(HERALD, Options::default()).await;
    let clients = herald.clients().await;
    follow(&herald, &["ann", "cid"], "bob").await;
    herald.cli(&["post", "--author", "bob", "--text", "one"]).await;
    herald.cli(&["delivery", "1", "--wait"]).await;
    until("nothing is left to do", LIMIT, || clients.is_idle()).await;
    let (done, lines) = audit(&herald, &[]).await;
    assert_eq!((done.code, lines.len()), (0, 1), "{done:?}");
    let summary = &lines[0]["summary"];
    assert_eq!(summary["post_count"], 1, "{summary}");
    assert_eq!(summary["channels"]["timeline"]["delivered_count"], 2, "{summary}");
    assert_eq!(summary["finding_count"], 0, "{summary}");

    // Purge TIMELINE while its workers are paused: no message is left that delivers the post.
    let broker = jetstream::new(herald.broker().await);
    let timeline = broker.get_stream("TIMELINE").await.unwrap();
    pause(&herald, "2100-01-01T00:00:00Z").await;
    herald.cli(&["post", "--author", "bob", "--text", "two"]).await;
    until("the post is planned", LIMIT, || async {
        let stream = broker.get_stream("TIMELINE").await.unwrap();
        stream.cached_info().state.messages == 2
    })
    .await;
    // A pending delivery is no finding.
    let (done, lines) = audit(&herald, &["--post", "2"]).await;
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(
        lines[0]["summary"]["channels"]["timeline"]["pending_count"], 2,
        "{lines:?}"
    );
    timeline.purge().await.unwrap();
    pause(&herald, "").await;
    until("nothing is left to do", LIMIT, || clients.is_idle()).await;

    let (done, lines) = audit(&herald, &["--post", "2", "--repair"]).await;
    assert_eq!(done.code, 1, "{done:?}");
    let mut lost: Vec<&str> = lines
        .iter()
        .filter(|line| line["finding"]["kind"] == "lost")
        .map(|line| line["finding"]["user_id"].as_str().unwrap())
        .collect();
    lost.sort_unstable();
    assert_eq!(lost, ["ann", "cid"], "{lines:?}");
    assert!(
        lines
            .iter()
            .all(|line| line["finding"].is_null() || line["finding"]["repaired"] == true),
        "{lines:?}"
    );

    herald.cli(&["delivery", "2", "--wait"]).await;
    until("nothing is left to do", LIMIT, || clients.is_idle()).await;
    for reader in ["ann", "cid"] {
        let timeline = herald.cli(&["timeline", reader]).await;
        let posts: Vec<_> = timeline["entries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["post_id"].as_u64())
            .collect();
        assert_eq!(posts, [Some(2), Some(1)], "{timeline}");
    }
    let (done, _) = audit(&herald, &[]).await;
    assert_eq!(done.code, 0, "{done:?}");
}

/// Pauses the timeline workers until `until`; `""` resumes them.
pub(crate) async fn pause(herald: &Herald, until: &str) {
    let client = herald.broker().await;
    let request = if until.is_empty() {
        "{}".to_owned()
    } else {
        format!("{{\"pause_until\":\"{until}\"}}")
    };
    let answer = client
        .request("$JS.API.CONSUMER.PAUSE.TIMELINE.timeline-normal", request.into())
        .await
        .unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert!(answer["error"].is_null(), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_audit_requests_are_refused() {
    let herald = Herald::start(HERALD, Options::default()).await;
    let (done, _) = audit(&herald, &["--post", "99"]).await;
    assert_eq!(done.code, 4, "{done:?}");
    assert!(done.stderr.contains("POST_NOT_FOUND"), "{done:?}");
    let (done, _) = audit(&herald, &["--post", "0"]).await;
    assert_eq!(done.code, 2, "{done:?}");
    let (done, _) = audit(&herald, &["--since", "1h", "--post", "1"]).await;
    assert_eq!(done.code, 2, "{done:?}");
    let clients = herald.clients().await;
    let future = v1::RunAuditRequest {
        since_time: Some(prost_types::Timestamp {
            seconds: 4_102_444_800,
            nanos: 0,
        }),
        ..v1::RunAuditRequest::default()
    };
    let refused = clients.audit().run_audit(future).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused:?}");
}

/// The continuous audit exports its results as metrics.
#[tokio::test(flavor = "multi_thread")]
async fn the_continuous_audit_exports_metrics_of_the_newest_posts() {
    let herald = Herald::start(
        HERALD,
        Options {
            variables: vec![(
                "HERALD_DEADLETTER__CONTINUOUS_AUDIT__INTERVAL_SECONDS".into(),
                "1".into(),
            )],
            ..Options::default()
        },
    )
    .await;
    follow(&herald, &["ann", "cid"], "bob").await;
    herald.cli(&["post", "--author", "bob", "--text", "one"]).await;
    let wanted = [
        "herald_audit_deliveries{channel=\"timeline\",state=\"targeted\"} 2",
        "herald_audit_deliveries{channel=\"timeline\",state=\"delivered\"} 2",
        "herald_audit_deliveries{channel=\"timeline\",state=\"pending\"} 0",
        "herald_audit_findings{kind=\"lost\"} 0",
    ];
    until("the metrics include the post", LIMIT, || async {
        let text = http_get(herald.http(), "/metrics").await;
        wanted.iter().all(|line| text.contains(line))
    })
    .await;
}
