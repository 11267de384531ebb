//! Traps of the servers: frozen streams, clusters, clocks.

use std::net::SocketAddr;

use harness::{NatsCluster, serve_http, until};
use herald_mesh::streams;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{Broker, LIMIT, Report, herald};
use crate::serve_cluster::World;

#[tokio::test]
async fn a_stream_that_the_server_froze_is_found() {
    let broker = Broker::start().await;
    // The next file of the stream can't be created: its name is taken by a directory.
    let streams = broker
        .nats
        .dir()
        .join("jetstream/jetstream/$G/streams/SLICES/msgs");
    assert!(streams.is_dir(), "{}", streams.display());
    for number in 1..100 {
        let block = streams.join(format!("{number}.blk"));
        if !block.exists() {
            std::fs::create_dir(block).unwrap();
        }
    }
    let mut sent = 0;
    let refused = loop {
        match broker.publish("fanout.v1.slice.low", vec![0; 500_000]).await {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 400, "the stream takes everything");
    };
    let report = broker.doctor().await;
    assert!(report.ids().contains(&"stream-frozen"), "{refused}: {report:?}");
    report.assert_ids(&["consumer-unread", "stream-frozen"]);
    assert!(report.what("stream-frozen").contains("SLICES"), "{report:?}");
}

#[tokio::test]
async fn a_server_whose_clock_is_wrong_is_found() {
    let broker = Broker::start().await;
    let wrong = serve_json(|path| {
        if path.starts_with("/healthz") {
            return json!({"status": "ok"}).to_string();
        }
        let now = jiff::Timestamp::now() - jiff::SignedDuration::from_mins(5);
        json!({
            "server_name": "late",
            "now": now.to_string(),
            "jetstream": {"config": {"sync_always": true}},
        })
        .to_string()
    })
    .await;
    let report = Report::of(
        &[
            "--monitor",
            &broker.nats.monitor_url(),
            "--monitor",
            &wrong,
            "--data-dir",
            "/nonexistent",
        ],
        &broker.variables,
    )
    .await;
    report.assert_ids(&["clocks-apart"]);
    let what = report.what("clocks-apart");
    assert!(
        what.contains("at least") && what.ends_with("that of NATS server late"),
        "{what}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_valkey_whose_clock_is_wrong_is_found() {
    let Some(world) = World::start().await else { return };
    let graph = world.serve("graph", &[]).await;
    let mut variables = world.variables();
    let url = format!("redis://{}", slow_clock(world.redis.port()).await);
    let timelines = variables
        .iter_mut()
        .find(|(name, _)| name == "HERALD_TIMELINES__URL");
    timelines.unwrap().1 = url;
    let arguments = [
        "--monitor",
        &world.nats.monitor_url(),
        "--metrics",
        &format!("http://{}", graph.http()),
    ];
    let report = Report::of(&arguments, &variables).await;
    assert!(report.ids().contains(&"clocks-apart"), "{report:?}");
    let what = report.what("clocks-apart");
    assert!(what.ends_with("that of Valkey (the primary of slot 0)"), "{what}");
    let report = Report::of(&arguments, &world.variables()).await;
    assert!(!report.ids().contains(&"clocks-apart"), "{report:?}");
}

/// Forwards connections to a Redis. Its answers to `TIME` are a day late.
async fn slow_clock(port: u16) -> SocketAddr {
    /// What the answer begins with: two texts, the first of ten digits.
    const TIME: &[u8] = b"*2\r\n$10\r\n";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let (mut requests, mut to_client) = client.into_split();
            let (mut answers, mut to_server) = server.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut requests, &mut to_server).await });
            tokio::spawn(async move {
                let mut part = vec![0; 65_536];
                while let Ok(length @ 1..) = answers.read(&mut part).await {
                    if part.starts_with(TIME) {
                        let seconds = &mut part[TIME.len()..TIME.len() + 10];
                        let time: u64 = std::str::from_utf8(seconds).unwrap().parse().unwrap();
                        seconds.copy_from_slice((time - 86_400).to_string().as_bytes());
                    }
                    if to_client.write_all(&part[..length]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

/// Serves HTTP: answers each request with the body that `body` has for its path.
pub(super) async fn serve_json(body: impl Fn(&str) -> String + Send + 'static) -> String {
    let answer = move |path: &str| {
        let body = body(path);
        let length = body.len();
        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
    };
    serve_http(answer).await
}

/// Runs the command with the monitoring ports of all servers.
async fn doctor(cluster: &NatsCluster, variables: &[(String, String)]) -> Report {
    let mut arguments = vec!["--data-dir", "/nonexistent"];
    let monitors = cluster.monitor_urls();
    for monitor in &monitors {
        arguments.extend(["--monitor", monitor]);
    }
    Report::of(&arguments, variables).await
}

#[tokio::test]
async fn a_cluster_should_have_replicas_and_needs_no_fsync_then() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = NatsCluster::start_direct(dir.path(), 3).await;
    let mut variables = vec![
        ("HERALD_NATS__URL".to_owned(), cluster.urls()),
        ("HERALD_START_WAIT_SECONDS".to_owned(), "60".to_owned()),
    ];
    let apply = async |variables: &[(String, String)]| {
        let done = herald(&["topology", "apply"], variables).await;
        assert_eq!(done.code, 0, "{done:?}");
    };
    apply(&variables).await;
    until("the servers are healthy", LIMIT, async || {
        doctor(&cluster, &variables).await.ids() == ["single-replica"]
    })
    .await;
    let report = doctor(&cluster, &variables).await;
    report.assert_ids(&["single-replica"]);
    assert!(report.what("single-replica").contains("POSTS"), "{report:?}");
    assert!(report.notes().contains(&"fsync-interval"), "{report:?}");
    assert!(report.unchecked().contains(&"stream-frozen"), "{report:?}");

    variables.push(("HERALD_TOPOLOGY__REPLICAS".to_owned(), "3".to_owned()));
    apply(&variables).await;
    until("the streams are copied", LIMIT, async || {
        doctor(&cluster, &variables).await.ids().is_empty()
    })
    .await;
    let report = doctor(&cluster, &variables).await;
    assert_eq!(report.notes(), ["consumer-unread"]);
    assert!(!report.unchecked().contains(&"stream-frozen"), "{report:?}");

    // Consumers are copied after their streams, and the command doesn't look at their replicas.
    cluster.wait_complete(None).await.unwrap();
    cluster.kill(2).await;
    // Streams that the server led have no leader until the others have elected one.
    until("the loss of a server is seen", LIMIT, async || {
        let report = doctor(&cluster, &variables).await;
        report.ids() == ["replica-behind", "server-unreachable"]
    })
    .await;
    let report = doctor(&cluster, &variables).await;
    assert!(
        report.what("replica-behind").ends_with(cluster.name(2)),
        "{report:?}"
    );
    // Its monitoring port doesn't answer.
    assert!(report.unchecked().contains(&"stream-frozen"), "{report:?}");

    cluster.kill(1).await;
    // The last server needs some seconds to notice that it leads nobody.
    let found = [
        "server-unhealthy",
        "server-unreachable",
        "stream-without-leader",
        "unreadable",
    ];
    until("the loss of the majority is seen", LIMIT, async || {
        doctor(&cluster, &variables).await.ids() == found
    })
    .await;
    let report = doctor(&cluster, &variables).await;
    report.assert_ids(&found);
    assert_eq!(
        report.what("stream-without-leader"),
        "stream ADVISORIES has no leader"
    );
    // Consumers without a leader, a line a stream; which ones have none is up to the servers.
    let findings = report.json["findings"].as_array().unwrap();
    let unreadable = findings.iter().filter(|finding| finding["id"] == "unreadable");
    let whats: Vec<_> = unreadable
        .map(|finding| finding["what"].as_str().unwrap())
        .collect();
    for what in &whats {
        assert!(what.contains("10008"), "{what}");
    }
    for stream in [
        streams::POSTS,
        streams::SLICES,
        streams::TIMELINE,
        streams::PUSH,
        streams::EVENTS,
    ] {
        let of_stream = whats
            .iter()
            .filter(|what| what.contains("consumer") && what.contains(&format!("of stream {stream}")));
        assert!(of_stream.count() <= 1, "{whats:?}");
    }
    let what = report.what("server-unhealthy");
    assert!(
        what.starts_with(&format!("server {}: ", cluster.name(0))),
        "{what}"
    );
}
