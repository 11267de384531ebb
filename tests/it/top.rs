//! `herald top` on a real mesh: the metrics and calls that it reads have what it shows.

use std::{process::Stdio, time::Duration};

use harness::{Herald, Options};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

use crate::HERALD;

const LIMIT: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_running_mesh_has_rates_latencies_and_lag() {
    let mesh = Herald::start(HERALD, Options::default()).await;
    mesh.cli(&["follow", "alice", "bob"]).await;
    let metrics = format!("http://{}", mesh.http());
    let mut top = Command::new(HERALD)
        .args([
            "top",
            "--output",
            "json",
            "--interval",
            "200ms",
            "--server",
            &mesh.url(),
            "--operator-server",
            &mesh.operator_url(),
        ])
        .args(["--metrics", &metrics])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(top.stdout.take().unwrap()).lines();
    let shown = async {
        loop {
            mesh.cli(&["post", "--author", "bob", "--text", "hi"]).await;
            let line = lines.next_line().await.unwrap().unwrap();
            let overview: Value = serde_json::from_str(&line).unwrap();
            let is_more_than_zero = |value: &Value| value.as_f64().is_some_and(|value| value > 0.0);
            if is_more_than_zero(&overview["posts_per_second"])
                && is_more_than_zero(&overview["timeline_deliveries_per_second"])
                && is_more_than_zero(&overview["latencies"][0]["p99_seconds"])
            {
                return overview;
            }
        }
    };
    let overview = tokio::time::timeout(LIMIT, shown).await.expect("rates are shown");
    let errors = overview["sources"].as_array().unwrap().iter();
    assert!(
        errors.clone().all(|source| source["error"].is_null()),
        "{overview:#}"
    );
    assert_eq!(errors.count(), 4);
    // Nobody has a device: no push, and so no latency, but a process that would know it.
    assert_eq!(overview["pushes_per_second"], 0.0, "{overview:#}");
    assert_eq!(overview["latencies"][1]["count"], 0.0, "{overview:#}");
    assert_eq!(overview["latencies"][1]["p99_seconds"], Value::Null);
    assert_eq!(overview["dead_letters"]["open_count"], 0);
    assert!(
        overview["consumers"].as_array().unwrap().len() > 20,
        "{overview:#}"
    );
}
