//! Collectors that don't work cost spans and one warning, and nothing else.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use harness::{Herald, Options, until};
use herald_proto::v1;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::LIMIT;
use crate::HERALD;

/// The line of the log that says so.
const WARNING: &str = "traces can't be exported";

/// Takes connections. `handle` decides what happens to each; the receiver has their number.
async fn listen(handle: impl Fn(TcpStream) + Send + 'static) -> (String, watch::Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("a bound address"));
    let (connections, taken) = watch::channel(0);
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            handle(connection);
            connections.send_modify(|count| *count += 1);
        }
    });
    (endpoint, taken)
}

/// A mesh that exports to the collector, with one follower of 107.
async fn start(endpoint: String) -> Herald {
    let options = Options {
        variables: vec![
            ("HERALD_TELEMETRY__OTLP".into(), endpoint),
            ("OTEL_BSP_SCHEDULE_DELAY".into(), "100".into()),
        ],
        ..Options::default()
    };
    let herald = Herald::start(HERALD, options).await;
    herald.cli(&["follow", "1", "107"]).await;
    herald
}

async fn wait_for_connections(taken: &mut watch::Receiver<usize>, count: usize) {
    tokio::time::timeout(LIMIT, taken.wait_for(|taken| *taken >= count))
        .await
        .expect("exports are tried")
        .expect("the collector runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_one_warning_and_no_delivery() {
    // It ends each connection.
    let (endpoint, mut taken) = listen(drop).await;
    let herald = start(endpoint).await;
    for n in 1..=20 {
        herald.cli(&["post", "--author", "107", "--text", "hello"]).await;
        herald.cli(&["delivery", &n.to_string(), "--wait"]).await;
    }
    wait_for_connections(&mut taken, 5).await;
    let log = herald.log();
    assert_eq!(log.matches(WARNING).count(), 1, "{log}");
}

/// The queue of spans is bounded by the SDK: `a_flood_of_spans_for_a_collector_that_hangs_takes_bounded_memory` in
/// `crates/runtime`.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_costs_one_warning_no_delivery_and_no_time_at_the_end() {
    // Each post has more than five spans: more than the queue has room for.
    const POSTS: u64 = 600;
    // It keeps each connection, and neither reads nor answers.
    let connections = parking_lot::Mutex::new(Vec::new());
    let (endpoint, mut taken) = listen(move |connection| connections.lock().push(connection)).await;
    let mut herald = start(endpoint).await;
    wait_for_connections(&mut taken, 1).await;
    let clients = herald.clients().await;
    let posting = stream::iter(0..POSTS).map(|number| {
        let mut posts = clients.posts();
        async move {
            let request = v1::SubmitPostRequest {
                author_id: "107".into(),
                text: format!("post {number}"),
                ..Default::default()
            };
            posts.submit_post(request).await.expect("a post");
        }
    });
    posting.buffer_unordered(16).collect::<()>().await;
    herald.cli(&["delivery", &POSTS.to_string(), "--wait"]).await;
    until("all posts are delivered", LIMIT, || clients.is_idle()).await;
    until("an export has failed", LIMIT, async || {
        herald.log().contains(WARNING)
    })
    .await;

    // Without a limit of the last export it would not end: the spans that wait need several exports of five seconds.
    let stopping = tokio::time::Instant::now();
    assert_eq!(herald.stop().await, 0, "{}", herald.log());
    assert!(
        stopping.elapsed() < Duration::from_secs(30),
        "{:?}",
        stopping.elapsed()
    );
    let log = herald.log();
    assert!(log.contains("the remaining traces were not exported"), "{log}");
    assert_eq!(log.matches(WARNING).count(), 1, "{log}");
}
