//! `herald rebuild`

use herald_proto::v1::{RebuildTimelinesRequest, RebuildTimelinesResponse};
use serde_json::{Value, json};
use tonic::Status;

use crate::{run::herald, server::Server};

fn progress(users: u64, done: bool) -> RebuildTimelinesResponse {
    RebuildTimelinesResponse {
        user_count: users,
        user_count_total: 1_000,
        timeline_count: users / 10,
        entry_count: 4 * users,
        position: 100 + users,
        done,
        seconds: 1.0,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_reports_what_it_wrote() {
    let server = Server::start().await;
    server.add_rebuild([Ok(progress(500, false)), Ok(progress(1_000, true))]);
    let done = herald(&server.url, &["rebuild", "timelines", "--after", "100"])
        .await
        .ok();
    assert!(
        done.stdout
            .starts_with("100 timelines rebuilt with 4,000 missing entries in "),
        "{done:?}"
    );
    assert_eq!(server.call::<RebuildTimelinesRequest>().after, 100);

    let server = Server::start().await;
    server.add_rebuild([Ok(progress(1_000, true))]);
    let arguments = [
        "rebuild",
        "timelines",
        "--user",
        "ann",
        "--user",
        "bob",
        "--output",
        "json",
    ];
    let done = herald(&server.url, &arguments).await.ok();
    let result: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(
        result,
        json!({"user_count": 1_000, "timeline_count": 100, "entry_count": 4_000, "seconds": 1.0})
    );
    assert_eq!(server.call::<RebuildTimelinesRequest>().user_ids, ["ann", "bob"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn complete_timelines_are_nothing_to_rebuild() {
    let server = Server::start().await;
    server.add_rebuild([Ok(RebuildTimelinesResponse {
        user_count: 3,
        user_count_total: 3,
        done: true,
        ..RebuildTimelinesResponse::default()
    })]);
    let done = herald(&server.url, &["rebuild", "timelines"]).await.ok();
    assert_eq!(done.stdout.trim(), "nothing to rebuild: 3 timelines are complete");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_rebuild_names_where_to_continue() {
    let server = Server::start().await;
    for end in [Some(Err(Status::unavailable("the store is not available"))), None] {
        server.add_rebuild([Ok(progress(500, false))].into_iter().chain(end));
        let done = herald(&server.url, &["rebuild", "timelines"]).await;
        assert_ne!(done.code, 0, "{done:?}");
        assert!(
            done.stderr
                .contains("continue with `herald rebuild timelines --after 600`"),
            "{done:?}"
        );
    }
}
