//! `herald top`, against a fake server and fake metrics.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use axum::{Router, routing::get};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::{
    run::{StreamingCommand, herald},
    server::Server,
    terminal::Terminal,
};

/// Serves the metrics of a process that accepts 10 posts, each readable within 0.5 to 1 s, between two readings.
async fn metrics() -> String {
    let readings = Arc::new(AtomicU64::new(0));
    let answer = move || {
        let posts = readings.fetch_add(1, Ordering::Relaxed) * 10;
        std::future::ready(format!(
            "# TYPE herald_gateway_posts_accepted counter\n\
             herald_gateway_posts_accepted_total{{lane=\"low\"}} {posts}\n\
             # TYPE herald_timeline_accept_to_visible_seconds histogram\n\
             herald_timeline_accept_to_visible_seconds_bucket{{le=\"0.5\"}} 0\n\
             herald_timeline_accept_to_visible_seconds_bucket{{le=\"1.0\"}} {posts}\n\
             herald_timeline_accept_to_visible_seconds_bucket{{le=\"30.0\"}} {posts}\n\
             herald_timeline_accept_to_visible_seconds_bucket{{le=\"+Inf\"}} {posts}\n\
             # EOF\n"
        ))
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/metrics", get(answer))).await });
    url
}

/// A URL at which nothing listens.
async fn away() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// The error of a source.
fn error<'a>(overview: &'a Value, source: &str) -> &'a Value {
    let sources = overview["sources"].as_array().unwrap();
    let found = sources.iter().find(|found| found["source"] == source);
    &found.unwrap_or_else(|| panic!("{source} is missing in {overview}"))["error"]
}

#[tokio::test]
async fn json_has_an_object_per_interval() {
    let server = Server::start().await;
    let (metrics, away) = (metrics().await, away().await);
    let mut top = StreamingCommand::start(
        &server.url,
        &[
            "top",
            "--interval",
            "200ms",
            "--metrics",
            &metrics,
            "--metrics",
            &away,
            "-o",
            "json",
        ],
    );
    let first = top.json().await;
    // A rate needs two readings.
    assert_eq!(first["posts_per_second"], Value::Null, "{first}");
    let second = top.json().await;
    let rate = second["posts_per_second"].as_f64().unwrap();
    // 10 posts between answers that are at least some milliseconds apart.
    assert!((1.0..=10_000.0).contains(&rate), "{second}");
    let timeline = &second["latencies"][0];
    assert_eq!(
        (&timeline["channel"], &timeline["promise_seconds"]),
        (&"timeline".into(), &30.0.into())
    );
    assert_eq!(
        (&timeline["p50_seconds"], &timeline["within_promise"]),
        (&0.75.into(), &1.0.into())
    );
    // No process of these has the role push.
    assert_eq!(second["latencies"][1]["count"], Value::Null);
    assert_eq!(second["pushes_per_second"], Value::Null);
    assert_eq!(second["dead_letters"]["open_count"], 1_234);
    let consumer = &second["consumers"][0];
    assert_eq!(
        (&consumer["consumer"], &consumer["pending_count"]),
        (&"fanout-normal".into(), &12.into())
    );
    assert_eq!(consumer["drain_seconds"], Value::Null);
    assert_eq!(second["streams"][0]["fullness"], 0.25);
    assert_eq!(error(&second, &metrics), &Value::Null);
    assert!(
        error(&second, &away)
            .as_str()
            .is_some_and(|error| error.contains("refused")),
        "{second}"
    );
    top.interrupt().await;
    assert_eq!(top.end().await, 0);
}

#[tokio::test]
async fn a_server_that_is_away_is_no_zero() {
    let (server, metrics) = (away().await, metrics().await);
    let mut top = StreamingCommand::start(
        &server,
        &["top", "--interval", "200ms", "--metrics", &metrics, "-o", "json"],
    );
    for _ in 0..2 {
        let overview = top.json().await;
        for key in ["consumers", "streams", "dead_letters", "last_24_hours"] {
            assert_eq!(overview[key], Value::Null, "{overview}");
        }
        for source in ["lag", "dead letters", "totals"] {
            assert!(error(&overview, source).is_string(), "{overview}");
        }
    }
    assert!(top.json().await["posts_per_second"].is_number());
}

#[tokio::test]
async fn q_leaves_the_terminal_as_it_was() {
    let server = Server::start().await;
    let metrics = metrics().await;
    let mut terminal = Terminal::start_whole(
        &server.url,
        &["top", "--interval", "200ms", "--metrics", &metrics],
    );
    for text in ["herald top", "fanout-normal", "1,234 open in 1 group", "q quits"] {
        terminal.wait_for(text).await;
    }
    terminal.type_text("q");
    let done = terminal.end().await;
    assert_eq!(done.code, 0, "{done:?}");
    // Into the other screen, and back.
    assert!(
        done.stderr.contains("\x1b[?1049h") && done.stderr.contains("\x1b[?1049l"),
        "{done:?}"
    );
}

#[tokio::test]
async fn without_a_terminal_it_names_json() {
    let server = Server::start().await;
    let done = herald(&server.url, &["top"]).await;
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("--output json"), "{done:?}");
    let done = herald(&server.url, &["top", "--interval", "1ms", "-o", "json"]).await;
    assert_eq!(done.code, 2, "{done:?}");
}
