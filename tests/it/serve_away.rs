//! A gateway that starts while PostgreSQL and Redis are away: it accepts posts of every author, and each is delivered
//! once when they are back.

use std::time::Duration;

use harness::{Process, run, until, until_some};
use herald_proto::v1;
use rustix::process::Signal;
use serde_json::Value;
use tonic::{Code, Request, Status, transport::Endpoint};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::{
    HERALD,
    serve_cluster::{World, is_ready},
    surface::http_get,
};

const LIMIT: Duration = Duration::from_mins(1);
/// Deadline of the calls.
const DEADLINE: Duration = Duration::from_secs(10);
const NEWER: &str = "INSERT INTO herald.migrations (version, name) VALUES (9999, '9999_newer')";
const WORKERS: &str = "archive,graph,fanout,timeline,push,analytics,deadletter";

/// The environment of the processes: with short time-outs of the stores.
fn variables(world: &World) -> Vec<(String, String)> {
    let mut variables = world.variables();
    for (name, value) in [
        ("STORE__POSTGRES__ACQUIRE_TIMEOUT_MS", "2000"),
        ("TIMELINES__CONNECT_TIMEOUT_MS", "1000"),
        ("TIMELINES__RESPONSE_TIMEOUT_MS", "1000"),
    ] {
        variables.push((format!("HERALD_{name}"), value.to_owned()));
    }
    variables
}

/// The arguments of a gateway whose peers are all at one address.
fn peers(url: &str) -> Vec<String> {
    let roles = ["graph", "analytics", "deadletter"];
    let peers = roles.map(|role| ["--peer".to_owned(), format!("{role}={url}")]);
    peers.into_iter().flatten().collect()
}

async fn start_gateway(world: &World, peers: &[String]) -> Process {
    let arguments: Vec<&str> = peers.iter().map(String::as_str).collect();
    Process::start(HERALD, "gateway", &arguments, &variables(world)).await
}

async fn submit(gateway: &Process, author: &str, request_id: &str) -> Result<v1::SubmitPostResponse, Status> {
    let channel = Endpoint::from_shared(gateway.url()).unwrap().connect_lazy();
    let mut request = Request::new(v1::SubmitPostRequest {
        author_id: author.into(),
        request_id: request_id.into(),
        text: "hello".into(),
        ..v1::SubmitPostRequest::default()
    });
    request.set_timeout(DEADLINE);
    let answer = v1::post_service_client::PostServiceClient::new(channel)
        .submit_post(request)
        .await?;
    Ok(answer.into_inner())
}

/// Submits a post with a request id until it is accepted: reading the request ids of POSTS takes a moment.
async fn submit_until_accepted(gateway: &Process, author: &str, request_id: &str) -> v1::SubmitPostResponse {
    until_some("the post is accepted", LIMIT, || async {
        match submit(gateway, author, request_id).await {
            Ok(accepted) => Some(accepted),
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                assert!(status.get_details_retry_info().is_some(), "{status:?}");
                None
            }
        }
    })
    .await
}

/// The checks of `/readyz`.
async fn checks(process: &Process) -> Vec<Value> {
    let answer = http_get(process.http(), "/readyz").await;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_starts_without_the_stores_and_accepts_posts() {
    let Some(world) = World::start().await else { return };
    let workers = Process::start(HERALD, WORKERS, &[], &variables(&world)).await;
    let peers = peers(&workers.url());
    let mut gateway = start_gateway(&world, &peers).await;
    for author in ["107", "newcomer"] {
        gateway.cli(&["follow", "ann", author]).await;
    }
    let first = submit(&gateway, "107", "").await.unwrap();
    assert_eq!(gateway.stop().await, 0, "{}", gateway.log());

    world.redis.stop().await.unwrap();
    world.postgres.stop().await.unwrap();
    let mut gateway = start_gateway(&world, &peers).await;
    assert!(is_ready(&gateway).await, "{}", gateway.log());
    let states = checks(&gateway).await;
    for name in ["store", "timelines"] {
        let state = states.iter().find(|state| state["name"] == name).unwrap();
        assert_eq!(
            (&state["ready"], &state["required"]),
            (&false.into(), &false.into())
        );
        let reason = state["reason"].as_str().unwrap();
        assert!(reason.contains("Connection refused"), "{state}");
    }
    // Authors whom this process has never seen; the last one has no key at all.
    let mut posts = vec![first.post_id];
    for author in ["107", "newcomer", "unknown"] {
        posts.push(submit(&gateway, author, "").await.unwrap().post_id);
    }
    let request_id = Uuid::new_v4().to_string();
    let chosen = submit_until_accepted(&gateway, "107", &request_id).await;
    let again = submit_until_accepted(&gateway, "107", &request_id).await;
    assert_eq!((again.post_id, again.duplicate), (chosen.post_id, true));
    posts.push(chosen.post_id);
    let read = run(
        HERALD,
        &["timeline", "ann", "--output", "json"],
        &[("HERALD_SERVER", &gateway.url())],
    )
    .await;
    assert_ne!(read.code, 0, "{read:?}");
    assert!(read.stderr.contains("the store is not available"), "{read:?}");

    world.postgres.restart().await.unwrap();
    until("the records can be read", LIMIT, || async {
        let states = checks(&gateway).await;
        states
            .iter()
            .any(|state| state["name"] == "store" && state["ready"] == true)
    })
    .await;
    world.redis.restart().await.unwrap();
    let expected: Vec<u64> = posts
        .iter()
        .copied()
        .filter(|post| *post != posts[3])
        .rev()
        .collect();
    until("all posts are on the timeline", LIMIT, || async {
        let shown = run(
            HERALD,
            &["timeline", "ann", "--output", "json"],
            &[("HERALD_SERVER", &gateway.url())],
        )
        .await;
        if shown.code != 0 {
            return false;
        }
        let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
        let entries = shown["entries"].as_array().unwrap();
        let ids: Vec<u64> = entries
            .iter()
            .filter_map(|entry| entry["post_id"].as_u64())
            .collect();
        ids == expected
    })
    .await;
    // A request that was accepted without the author's key is found by it.
    until("the post of the unknown author is archived", LIMIT, || async {
        let listed = gateway.cli(&["posts", "list", "unknown"]).await;
        listed["posts"].as_array().is_some_and(|posts| posts.len() == 1)
    })
    .await;
    let again = submit_until_accepted(&gateway, "107", &request_id).await;
    assert_eq!((again.post_id, again.duplicate), (chosen.post_id, true));
    let device = gateway.cli(&["device", "list", "ann"]).await;
    assert!(
        device["vapid_public_key"]
            .as_str()
            .is_some_and(|key| !key.is_empty()),
        "{device}"
    );
    until("the audit finds nothing", LIMIT, || async {
        let done = run(
            HERALD,
            &["audit", "--output", "json"],
            &[("HERALD_OPERATOR_SERVER", &gateway.operator_url())],
        )
        .await;
        done.code == 0
    })
    .await;
    let dead_letters = gateway.cli(&["dlq", "list"]).await;
    assert_eq!(
        dead_letters["dead_letters"].as_array().map(Vec::len),
        Some(0),
        "{dead_letters}"
    );
    assert_eq!(gateway.stop().await, 0, "{}", gateway.log());
    drop(workers);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_stream_waits_for_the_store() {
    let Some(world) = World::start().await else { return };
    world.postgres.stop().await.unwrap();
    let peers = peers("http://127.0.0.1:1");
    let arguments: Vec<&str> = peers.iter().map(String::as_str).collect();
    // POSTS may have been made anew beside a store with posts, whose ids new posts would have too.
    let refused = Process::start_unready(HERALD, "gateway", &arguments, &variables(&world)).await;
    assert_eq!(refused["checks"][0]["name"], "streams", "{refused}");
    let (mut gateway, restarted) = tokio::join!(start_gateway(&world, &peers), world.postgres.restart());
    restarted.unwrap();
    submit_until_accepted(&gateway, "107", "").await;
    assert_eq!(gateway.stop().await, 0, "{}", gateway.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_used_ends_a_gateway_that_started_without_it() {
    let Some(world) = World::start().await else { return };
    let workers = Process::start(HERALD, WORKERS, &[], &variables(&world)).await;
    let peers = peers(&workers.url());
    let mut gateway = start_gateway(&world, &peers).await;
    submit(&gateway, "107", "").await.unwrap();
    assert_eq!(gateway.stop().await, 0, "{}", gateway.log());
    drop(workers);

    world.postgres.run_in("herald", NEWER).await.unwrap();
    world.postgres.stop().await.unwrap();
    let mut gateway = start_gateway(&world, &peers).await;
    submit(&gateway, "108", "").await.unwrap();
    world.postgres.restart().await.unwrap();
    assert_eq!(gateway.wait().await, 1, "{}", gateway.log());
    assert!(
        gateway.log().contains("use the newer version of Herald"),
        "{}",
        gateway.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_that_use_no_timelines_run_without_redis() {
    let Some(world) = World::start().await else { return };
    world.redis.stop().await.unwrap();
    let mut variables = variables(&world);
    variables.retain(|(name, _)| !name.starts_with("HERALD_TIMELINES__"));
    let mut workers = Process::start(HERALD, "archive,graph,fanout,push,analytics", &[], &variables).await;
    assert!(is_ready(&workers).await, "{}", workers.log());
    let states = checks(&workers).await;
    assert!(
        states.iter().all(|state| state["name"] != "timelines"),
        "{states:?}"
    );
    // `timeout` of GNU coreutils sends two signals at once: they are one request to stop.
    workers.signal(Signal::INT);
    assert_eq!(workers.stop().await, 0, "{}", workers.log());
}
