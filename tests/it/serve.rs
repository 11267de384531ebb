//! `herald serve` and its companions without a store: what they refuse, and in which words.

use std::{io::Write as _, time::Duration};

use futures::future::join_all;
use harness::{Output, run};
use herald_local_nats::{Config as NatsConfig, Server as Nats};
use serde_json::Value;

use crate::HERALD;

const LIMIT: Duration = Duration::from_mins(1);

async fn herald(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    tokio::time::timeout(LIMIT, run(HERALD, arguments, variables))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_process_that_lacks_something_says_what_to_set() {
    let nats = ("HERALD_NATS__URL", "nats://127.0.0.1:1");
    let store = ("HERALD_STORE__URL", "postgres://127.0.0.1:1/herald");
    let timelines = ("HERALD_TIMELINES__URL", "redis://127.0.0.1:1");
    for (roles, variables, parts) in [
        ("timeline", vec![], vec!["nats.url", "--nats-url"]),
        ("timeline", vec![nats], vec!["store.url", "--store", "herald up"]),
        (
            "timeline",
            vec![nats, store],
            vec!["timelines.url", "--timelines"],
        ),
        (
            "fanout,push",
            vec![nats, store, timelines],
            vec!["peers.graph", "--peer graph=URL", "fanout calls graph"],
        ),
        (
            "gateway,graph",
            vec![
                nats,
                store,
                timelines,
                ("HERALD_PEERS__ANALYTICS", "http://a:7700"),
            ],
            vec!["peers.deadletter", "--peer deadletter=URL"],
        ),
        (
            "timeline",
            vec![nats, store, timelines, ("HERALD_LANES", "[\"urgent\"]")],
            vec!["HERALD_LANES", "high, normal, low"],
        ),
        (
            "timeline",
            vec![nats, store, timelines, ("HERALD_STORE__URL_FILE", "/nowhere")],
            vec!["HERALD_STORE__URL_FILE", "store.url"],
        ),
    ] {
        let done = herald(&["serve", roles], &variables).await;
        assert_eq!(done.code, 2, "{done:?}");
        for part in parts {
            assert!(done.stderr.contains(part), "{part} is not in {done:?}");
        }
    }
    let done = herald(&["serve", "archive,graph", "--lanes", "high"], &[]).await;
    assert_eq!(done.code, 2, "{done:?}");
    assert!(
        done.stderr.contains("fanout, timeline and push have them"),
        "{done:?}"
    );
    let done = herald(&["serve", "timelines"], &[]).await;
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("deadletter"), "{done:?}");
    let done = herald(&["serve", "fanout", "--peer", "graph:7700"], &[]).await;
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("ROLE=URL"), "{done:?}");
}

#[tokio::test]
async fn a_password_on_the_command_line_is_refused() {
    let store = "postgres://me:hunter2@host/herald";
    for arguments in [
        "serve timeline --nats-url nats://me:hunter2@host",
        "serve timeline --nats-url nats://hunter2@host",
        &format!("serve timeline --store {store}"),
        "serve timeline --timelines redis://:hunter2@host",
        "up --demo --store postgres://host/herald?password=hunter2",
        "topology apply --nats-url nats://me:hunter2@host",
        &format!("store migrate --store {store}"),
        &format!("bench --store {store} --timelines redis://host"),
        "bench --store postgres://host/herald --timelines=redis://:hunter2@host",
    ] {
        let split: Vec<&str> = arguments.split(' ').collect();
        // Also if the environment has the same URL.
        for variables in [&[][..], &[("HERALD_STORE__URL", store)][..]] {
            let done = herald(&split, variables).await;
            assert_eq!(done.code, 2, "{done:?}");
            assert!(
                done.stderr.contains("other users of this machine"),
                "{arguments}: {done:?}"
            );
            assert!(!done.stderr.contains("hunter2"), "{arguments}: {done:?}");
        }
    }
}

#[tokio::test]
async fn a_printed_configuration_has_no_password() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "hunter2").unwrap();
    let path = file.path().to_str().unwrap();
    let variables = [
        ("HERALD_NATS__URL", "nats://me:hunter2@host"),
        ("HERALD_STORE__URL", "postgres://me:hunter2@host/herald"),
        ("HERALD_TIMELINES__URL", "redis://:hunter2@host"),
        ("HERALD_NATS__TOKEN_FILE", path),
        ("HERALD_PUSH__VAPID_PRIVATE_KEY_FILE", path),
        ("HERALD_PEERS__GRAPH", "http://graph:7700"),
    ];
    for format in ["text", "json"] {
        let done = herald(&["config", "print", "--output", format], &variables).await;
        assert_eq!(
            done.code, 2,
            "the URL and the token contradict each other: {done:?}"
        );
        let done = herald(&["config", "print", "--output", format], &variables[1..]).await;
        assert_eq!(done.code, 0, "{done:?}");
        assert!(!done.stdout.contains("hunter2"), "{}", done.stdout);
        assert!(done.stdout.contains("http://graph:7700"), "{}", done.stdout);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_processes_make_the_streams_at_once() {
    let nats = Nats::start(NatsConfig {
        extra: "authorization { user: \"herald\", password: \"s3cret\" }\n".into(),
        ..NatsConfig::default()
    })
    .await
    .unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "s3cret").unwrap();
    let url = nats.client_url();
    let arguments = ["topology", "apply", "--nats-url", &url, "--output", "json"];
    let variables = [
        ("HERALD_NATS__USER", "herald"),
        ("HERALD_NATS__PASSWORD_FILE", file.path().to_str().unwrap()),
    ];
    let all = join_all((0..6).map(|_| herald(&arguments, &variables))).await;
    for done in &all {
        assert_eq!(done.code, 0, "{done:?}");
        let applied: Value = serde_json::from_str(&done.stdout).unwrap();
        assert_eq!(applied["stream_count"], 9, "{applied}");
    }
    // The credentials can be in the URL, from the environment.
    let with_password = url.replace("nats://", "nats://herald:s3cret@");
    let done = herald(&["topology", "apply"], &[("HERALD_NATS__URL", &with_password)]).await;
    assert_eq!(done.code, 0, "{done:?}");
    let done = herald(&["topology", "apply", "--nats-url", &url], &[]).await;
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("can't connect to NATS"), "{done:?}");
    let done = herald(&["topology", "apply", "--nats-url", "nats://127.0.0.1:1"], &[]).await;
    assert_eq!(done.stderr.matches("Connection refused").count(), 1, "{done:?}");
}
