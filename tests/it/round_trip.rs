//! `herald round-trip` against a real mesh.

use std::time::{Duration, Instant};

use harness::{Herald, Options, run, until};
use herald_proto::v1::ListDevicesRequest;
use serde_json::Value;

use crate::HERALD;

/// Nobody listens there.
const NOWHERE: &str = "http://127.0.0.1:1";

async fn start(allow_private: bool) -> Herald {
    let arguments = if allow_private {
        vec!["--allow-private-endpoints".into()]
    } else {
        vec![]
    };
    let options = Options {
        arguments,
        ..Options::default()
    };
    Herald::start(HERALD, options).await
}

/// The exit code and the JSON output or error.
async fn round_trip(url: &str, arguments: &[&str]) -> (i32, Value) {
    let all = [&["round-trip", "--output", "json"], arguments].concat();
    let done = run(HERALD, &all, &[("HERALD_SERVER", url)]).await;
    let text = if done.code == 0 {
        &done.stdout
    } else {
        &done.stderr
    };
    let json = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {done:?}"));
    (done.code, json)
}

/// Asserts that a step failed.
fn assert_failed((code, report): &(i32, Value), step: &str, reason: &str) {
    assert_eq!(*code, 1, "{report}");
    let message = report["error"]["message"].as_str().unwrap();
    assert!(
        message.starts_with(&format!("step {step}: ")) && message.contains(reason),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_trip_leaves_nothing_behind() {
    let herald = start(true).await;
    let url = herald.url();
    let (code, done) = round_trip(&url, &[]).await;
    assert_eq!(code, 0, "{done}");
    for latency in ["accepted_ms", "timeline_ms", "push_ms"] {
        assert!(done[latency].as_f64().is_some_and(|ms| ms > 0.0), "{done}");
    }
    let (author, follower) = (
        done["author_id"].as_str().unwrap(),
        done["follower_id"].as_str().unwrap(),
    );
    let following = herald.cli(&["following", follower, author]).await;
    assert_eq!(following["following"], false, "{following}");
    let mut devices = herald.clients().await.devices();
    let request = ListDevicesRequest {
        user_id: follower.to_owned(),
    };
    let devices = devices.list_devices(request).await.unwrap().into_inner();
    assert!(devices.devices.is_empty(), "{devices:?}");
    until(
        "the post is gone from the timeline",
        Duration::from_secs(30),
        || async {
            let timeline = herald.cli(&["timeline", follower]).await;
            timeline["entries"].as_array().is_some_and(Vec::is_empty)
        },
    )
    .await;

    let (code, done) = round_trip(&url, &["--without-push"]).await;
    assert_eq!(code, 0, "{done}");
    assert!(done.get("push_ms").is_none() && done["post_id"] != 1, "{done}");

    let failed = round_trip(&url, &["--sink-url", NOWHERE, "--timeout-seconds", "5"]).await;
    assert_failed(
        &failed,
        "push",
        "no push came in time: it is pending, because 127.0.0.1",
    );
    // It has removed what it made, so that nothing is retried.
    let clients = herald.clients().await;
    until("nothing waits", Duration::from_mins(1), || clients.is_idle()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_step_that_failed_is_named() {
    let mut herald = start(false).await;
    let url = herald.url();
    let failed = round_trip(&url, &[]).await;
    assert_failed(&failed, "device", "");
    let unspecified = ["--sink-listen", "0.0.0.0:0"];
    let (code, report) = round_trip(&url, &unspecified).await;
    assert_eq!(code, 2, "{report}");
    assert!(
        report["error"]["message"]
            .to_string()
            .contains("--sink-url must be set"),
        "{report}"
    );
    assert_eq!(herald.stop().await, 0);
    let started = Instant::now();
    let failed = round_trip(NOWHERE, &["--timeout-seconds", "2"]).await;
    assert_failed(&failed, "connect", "no Herald server");
    assert!(
        started.elapsed() >= Duration::from_secs(2),
        "it waits for a server"
    );
}
