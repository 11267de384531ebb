//! Commands that run until they are stopped.

use std::process::Stdio;

use herald_proto::v1::{
    RemovalReason, TimelineRemoval, TimelineSnapshot, WatchLagRequest, WatchTimelineRequest,
    watch_timeline_response::Event,
};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tonic::Status;

use crate::{
    run::{LIMIT, StreamingCommand, command, herald},
    server::{Server, post},
};

#[tokio::test]
async fn a_watch_resumes_after_a_broken_stream() {
    let server = Server::start().await;
    server.add_watch([post(2, "b"), post(1, "a")], [post(3, "c")], "R1");
    server.add_watch([post(4, "d")], [], "R2");
    let mut watch = StreamingCommand::start(
        &server.url,
        &["watch", "1", "--snapshot-size", "2", "--output", "json"],
    );
    let snapshot = watch.json().await;
    assert_eq!(snapshot["event"], "snapshot");
    assert_eq!(snapshot["entries"][0]["post_id"], 2);
    assert_eq!(snapshot["resume_token"], "R1");
    assert_eq!(snapshot["server_time"], "2026-01-31T08:00:00Z");
    let entry = watch.json().await;
    assert_eq!(entry["event"], "entry");
    assert_eq!(entry["entry"]["text"], "c");
    // The stream breaks here, and the watch resumes.
    assert_eq!(watch.json().await["entries"][0]["post_id"], 4);
    let requests: Vec<WatchTimelineRequest> = server.calls();
    assert_eq!(
        (requests[0].snapshot_size, requests[0].resume_token.as_str()),
        (2, "")
    );
    assert_eq!(requests[1].resume_token, "R1");
    watch.interrupt().await;
    assert_eq!(watch.end().await, 0);
}

#[tokio::test]
async fn a_watch_says_where_it_reconnects_and_that_it_did() {
    let server = Server::start().await;
    server.fail([Status::unavailable("away")]);
    server.add_watch([post(1, "a")], [], "R1");
    let mut watch = command(&server.url, &["watch", "1"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut notes = BufReader::new(watch.stderr.take().unwrap()).lines();
    let mut note = async || {
        let note = tokio::time::timeout(LIMIT, notes.next_line()).await;
        note.unwrap().unwrap().expect("a note")
    };
    let address = format!("reconnecting to {} in", server.url);
    let first = note().await;
    assert!(first.contains(&address), "{first}");
    let second = note().await;
    assert!(second.contains("reconnected"), "{second}");
    watch.kill().await.unwrap();
}

#[tokio::test]
async fn text_output_of_a_watch_is_in_ascending_order() {
    let server = Server::start().await;
    server.add_watch([post(2, "newer"), post(1, "older")], [], "R1");
    let mut watch = StreamingCommand::start(&server.url, &["watch", "1"]);
    let mut text = String::new();
    while !text.contains("newer") {
        text += &(watch.line().await + "\n");
    }
    assert!(text.contains("older"), "{text}");
    watch.interrupt().await;
    assert_eq!(watch.end().await, 0);
}

#[tokio::test]
async fn a_watch_prints_removals() {
    let removals = || {
        let removal = |post_id, reason: RemovalReason| {
            Event::Removal(TimelineRemoval {
                post_id,
                reason: reason.into(),
            })
        };
        vec![
            Event::Snapshot(TimelineSnapshot::default()),
            removal(17, RemovalReason::Deleted),
            removal(18, RemovalReason::Muted),
        ]
    };
    let server = Server::start().await;
    server.add_watch_events(removals(), "R1");
    let mut watch = StreamingCommand::start(&server.url, &["watch", "1", "--output", "json"]);
    assert_eq!(watch.json().await["event"], "snapshot");
    let line = watch.json().await;
    assert_eq!(line["event"], "removal");
    assert_eq!(line["removal"], json!({"post_id": 17, "reason": "deleted"}));
    assert_eq!(watch.json().await["removal"]["reason"], "muted");
    watch.interrupt().await;
    assert_eq!(watch.end().await, 0);

    server.add_watch_events(removals(), "R1");
    let mut watch = StreamingCommand::start(&server.url, &["watch", "1"]);
    let mut text = String::new();
    while !text.contains("post 18 removed: muted") {
        text += &(watch.line().await + "\n");
    }
    assert!(text.contains("post 17 removed: deleted"), "{text}");
    watch.interrupt().await;
    assert_eq!(watch.end().await, 0);
}

#[tokio::test]
async fn a_rejected_watch_is_not_retried() {
    let server = Server::start().await;
    server.fail([Status::invalid_argument("the resume token is not one")]);
    assert_eq!(
        herald(&server.url, &["watch", "1", "--resume-token", "x"])
            .await
            .code,
        2
    );
    assert_eq!(server.calls::<WatchTimelineRequest>().len(), 1);
}

#[tokio::test]
async fn a_watch_exits_after_its_limit() {
    let server = Server::start().await;
    server.fail((0..100).map(|_| Status::unavailable("away")));
    assert_eq!(
        herald(&server.url, &["watch", "1", "--give-up-after", "300ms"])
            .await
            .code,
        3
    );
    assert!(server.calls::<WatchTimelineRequest>().len() > 1);
}

#[tokio::test]
async fn a_closed_pipe_is_a_success() {
    let server = Server::start().await;
    for _ in 0..50 {
        server.add_watch([post(1, "a")], [], "");
    }
    let mut watch = StreamingCommand::start(&server.url, &["watch", "1", "--output", "json"]);
    watch.line().await;
    let mut child = watch.close();
    let status = tokio::time::timeout(LIMIT, child.wait())
        .await
        .expect("the command ends within the limit")
        .unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn lag_refreshes_until_interrupted() {
    let server = Server::start().await;
    let mut lag = StreamingCommand::start(
        &server.url,
        &["lag", "--watch", "--interval", "500ms", "-o", "json"],
    );
    for _ in 0..2 {
        assert_eq!(lag.json().await["streams"][0]["stream"], "POSTS");
    }
    assert_eq!(
        server.call::<WatchLagRequest>().interval.unwrap().nanos,
        500_000_000
    );
    lag.interrupt().await;
    assert_eq!(lag.end().await, 0);
}
