//! `herald recover`, `herald backup` and `herald restore` of processes that share NATS and PostgreSQL.

use harness::{Output, Process, run, until};
use herald_local_nats::{Config as NatsConfig, Server as Nats};
use herald_proto::v1;
use serde_json::Value;

use crate::{
    HERALD,
    serve_cluster::{LIMIT, World},
};

const ALL: &str = "gateway,archive,graph,fanout,timeline,push,analytics,deadletter";
const DATABASE: &str = "herald";
const SAVED: &str = "saved";
const READERS: [&str; 2] = ["ann", "cid"];

async fn herald(arguments: &[&str], variables: &[(String, String)]) -> Output {
    let variables: Vec<(&str, &str)> = variables
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let mut all = arguments.to_vec();
    all.extend(["--output", "json"]);
    run(HERALD, &all, &variables).await
}

/// Runs a command that must succeed.
async fn done(arguments: &[&str], variables: &[(String, String)]) -> Value {
    let done = herald(arguments, variables).await;
    assert_eq!(done.code, 0, "{arguments:?}: {done:?}");
    serde_json::from_str(&done.stdout).unwrap()
}

async fn settle(process: &Process) {
    let clients = process.clients().await;
    until("nothing is left to do", LIMIT, || clients.is_idle()).await;
}

async fn post(process: &Process, text: &str) -> u64 {
    let posted = process.cli(&["post", "--author", "bob", "--text", text]).await;
    settle(process).await;
    posted["post_id"].as_u64().unwrap()
}

async fn stop(mut process: Process) {
    assert_eq!(process.stop().await, 0, "{}", process.log());
}

async fn assert_timelines(process: &Process, posts: &[u64]) {
    for reader in READERS {
        let timeline = process.cli(&["timeline", reader]).await;
        let entries = timeline["entries"].as_array().unwrap();
        let found: Vec<u64> = entries
            .iter()
            .map(|entry| entry["post_id"].as_u64().unwrap())
            .collect();
        assert_eq!(found, posts, "{reader}: {timeline}");
    }
}

/// The exit code and number of findings of an audit.
async fn audit(process: &Process, arguments: &[&str]) -> (i32, usize) {
    let mut all = vec!["audit"];
    all.extend(arguments);
    let server = ("HERALD_OPERATOR_SERVER".to_owned(), process.operator_url());
    let done = herald(&all, &[server]).await;
    let findings = done.stdout.lines().filter(|line| line.contains("\"finding\":{"));
    (done.code, findings.count())
}

/// Puts the saved database in the place of the present one, and empties Redis, whose timelines are of another time.
async fn restore_database(world: &World) {
    world.postgres.drop_database(DATABASE).await.unwrap();
    world.postgres.copy_of(SAVED, DATABASE).await.unwrap();
    world.redis.flush().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_database_goes_on_with_newer_streams_and_with_those_of_its_backup() {
    let Some(world) = World::start().await else { return };
    let variables = world.variables();
    let process = world.serve(ALL, &[]).await;
    for reader in READERS {
        let follow = v1::Follow {
            follower_id: reader.into(),
            author_id: "bob".into(),
            notify: None,
        };
        let request = v1::FollowRequest { follow: Some(follow) };
        process.clients().await.graph().follow(request).await.unwrap();
    }
    assert_eq!((post(&process, "one").await, post(&process, "two").await), (1, 2));
    // The streams while the processes run, then the database, of which a copy can be made only without connections.
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("backup");
    let backup = done(&["backup", dir.to_str().unwrap()], &variables).await;
    assert_eq!(
        (&backup["stream_count"], &backup["row_count"]),
        (&9.into(), &Value::Null)
    );
    // A running mesh is not recovered.
    stop(process).await;
    world.postgres.copy_of(DATABASE, SAVED).await.unwrap();
    let process = world.serve(ALL, &[]).await;
    assert_eq!(
        (post(&process, "three").await, post(&process, "four").await),
        (3, 4)
    );
    stop(process).await;

    restore_database(&world).await;
    let refused = herald(
        &[
            "serve",
            ALL,
            "--grpc",
            "127.0.0.1:0",
            "--operator-grpc",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
        ],
        &variables,
    )
    .await;
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(
        refused.stderr.contains("the store is older than the streams"),
        "{refused:?}"
    );
    let recovered = done(&["recover"], &variables).await;
    assert_eq!(recovered["posts_archived"], 2, "{recovered}");
    let process = world.serve(ALL, &[]).await;
    // The two posts are on no timeline, and not counted.
    assert_eq!(audit(&process, &["--repair"]).await, (1, 4));
    settle(&process).await;
    assert_eq!(audit(&process, &[]).await, (0, 0));
    assert_timelines(&process, &[4, 3, 2, 1]).await;
    let in_use = herald(&["recover"], &variables).await;
    assert_eq!(
        in_use.code, 0,
        "nothing is wrong, so nothing needs to be stopped: {in_use:?}"
    );
    stop(process).await;

    // As on new machines: another NATS server, and the database of the backup.
    restore_database(&world).await;
    let nats = Nats::start(NatsConfig::default()).await.unwrap();
    let mut variables = variables;
    variables[0].1 = nats.client_url();
    let restored = done(&["restore", dir.to_str().unwrap()], &variables).await;
    assert_eq!(restored["stream_count"], 9, "{restored}");
    let process = Process::start(HERALD, ALL, &[], &variables).await;
    // Timelines are made again from the database.
    audit(&process, &["--repair"]).await;
    settle(&process).await;
    assert_eq!(audit(&process, &[]).await, (0, 0));
    assert_timelines(&process, &[2, 1]).await;
    let new = post(&process, "new").await;
    assert_timelines(&process, &[new, 2, 1]).await;
    stop(process).await;
}
