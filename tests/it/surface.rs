//! Interfaces of scripts and probes: health, readiness, metrics, and the JSON output of the command line.

use std::time::Duration;

use harness::{Herald, Options, run, run_json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::HERALD;

pub(crate) async fn http_get(address: &str, path: &str) -> String {
    http_get_as(address, path, "*/*").await
}

/// As [`http_get`], for a reader that accepts these media types.
pub(crate) async fn http_get_as(address: &str, path: &str, accept: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_metrics_answer() {
    let mut herald = Herald::start(HERALD, Options::default()).await;
    for path in ["/healthz", "/readyz"] {
        let answer = http_get(herald.http(), path).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    herald.cli(&["post", "--author", "bob", "--text", "hi"]).await;
    let metrics = http_get(herald.http(), "/metrics").await;
    assert!(metrics.contains("herald_fanout_slices_total"), "{metrics}");
    assert_eq!(herald.stop().await, 0, "{}", herald.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_same_data_is_refused() {
    let herald = Herald::start(HERALD, Options::default()).await;
    let dir = herald.data_dir();
    let arguments = [
        "up",
        "--grpc",
        "127.0.0.1:0",
        "--operator-grpc",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--nats-port",
        "0",
        "--data-dir",
        dir.to_str().unwrap(),
    ];
    let second = tokio::time::timeout(Duration::from_secs(30), run(HERALD, &arguments, &[]))
        .await
        .unwrap();
    assert_eq!(second.code, 1, "{second:?}");
    assert!(second.stderr.contains("another process"), "{}", second.stderr);
    // The first server still works.
    herald.cli(&["post", "--author", "bob", "--text", "hi"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_benchmark_verifies_its_deliveries() {
    let arguments = [
        "bench",
        "--users",
        "500",
        "--authors",
        "20",
        "--followers",
        "50",
        "--posts",
        "100",
        "--push-share",
        "0.1",
        "--output",
        "json",
    ];
    let report = run_json(HERALD, &arguments, &[]).await;
    assert_eq!(report["verified"], true, "{report}");
    assert_eq!(report["store"]["missing"], 0, "{report}");
    assert_eq!(report["store"]["extra"], 0, "{report}");
    assert_eq!(report["store"]["deliveries"], report["deliveries"], "{report}");
    for key in [
        "accepted_per_second",
        "deliveries_per_second",
        "rss_mb_max",
        "disk_mb",
    ] {
        assert!(
            report[key].as_f64().is_some_and(|value| value > 0.0),
            "{key}: {report}"
        );
    }
    for key in ["visible_ms", "push_ms"] {
        for percentile in ["p50", "p95", "p99", "max"] {
            assert!(
                report[key][percentile].as_f64().is_some_and(|ms| ms > 0.0),
                "{key}.{percentile}: {report}"
            );
        }
    }
}
