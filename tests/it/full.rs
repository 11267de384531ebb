//! Full disk and full stream: posts are refused with a specific error, and accepted posts are delivered.

use std::{path::Path, time::Duration};

use harness::{Clients, Herald, Options, until};
use herald_proto::v1;
use rustix::fs::{FallocateFlags, statvfs};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{HERALD, surface::http_get};

const LIMIT: Duration = Duration::from_secs(30);

/// Disk space that other processes may use during the test without effect, MiB.
const MARGIN_MB: u64 = 1_024;

fn free_mb(dir: &Path) -> u64 {
    let stat = statvfs(dir).unwrap();
    (stat.f_bavail * stat.f_frsize) >> 20
}

async fn post(clients: &Clients, text: &str) -> Result<u64, Status> {
    let request = v1::SubmitPostRequest {
        author_id: "bob".into(),
        text: text.into(),
        ..Default::default()
    };
    Ok(clients.posts().submit_post(request).await?.into_inner().post_id)
}

fn assert_refused(status: &Status, reason: &str) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, reason, "{status:?}");
    assert!(details.retry_info().unwrap().retry_delay.is_some(), "{status:?}");
}

async fn timeline(clients: &Clients) -> Vec<u64> {
    let request = v1::ListTimelineRequest {
        user_id: "ann".into(),
        page_size: 200,
        ..Default::default()
    };
    let answer = clients
        .timelines()
        .list_timeline(request)
        .await
        .unwrap()
        .into_inner();
    answer
        .entries
        .into_iter()
        .filter_map(|entry| Some(entry.post?.post_id))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_posts_until_space_is_freed() {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    // Posts are refused below twice `disk_free_mb_min`, so the disk counts as full once MARGIN_MB more is used.
    let free_mb_min = (free_mb(parent)
        .checked_sub(MARGIN_MB)
        .expect("at least 1 GiB of free disk"))
        / 2;
    let herald = Herald::start(
        HERALD,
        Options {
            parent: Some(parent.into()),
            variables: vec![("HERALD_STORE__DISK_FREE_MB_MIN".into(), free_mb_min.to_string())],
            ..Options::default()
        },
    )
    .await;
    let clients = herald.clients().await;
    herald.cli(&["follow", "ann", "bob"]).await;
    let first = post(&clients, "space left").await.unwrap();

    let ballast = tempfile::NamedTempFile::new_in(parent).unwrap();
    rustix::fs::fallocate(
        ballast.as_file(),
        FallocateFlags::empty(),
        0,
        (2 * MARGIN_MB) << 20,
    )
    .unwrap();
    until("the disk counts as full", LIMIT, || async {
        post(&clients, "one too many?").await.is_err()
    })
    .await;
    let refusal = post(&clients, "one too many").await.unwrap_err();
    assert_refused(&refusal, "STORE_FULL");
    let needed = format!(
        "{} MiB are needed for new posts (twice store.disk_free_mb_min)",
        2 * free_mb_min
    );
    assert!(refusal.message().contains(&needed), "{refusal:?}");
    until("the server is not ready", LIMIT, || async {
        http_get(herald.http(), "/readyz")
            .await
            .starts_with("HTTP/1.1 503")
    })
    .await;
    let readyz = http_get(herald.http(), "/readyz").await;
    assert!(readyz.contains("store.disk_free_mb_min"), "{readyz}");
    let before = timeline(&clients).await;
    assert!(before.contains(&first));

    drop(ballast);
    until("posts are accepted again", LIMIT, || async {
        post(&clients, "space freed").await.is_ok()
    })
    .await;
    until("the server is ready again", LIMIT, || async {
        http_get(herald.http(), "/readyz")
            .await
            .starts_with("HTTP/1.1 200")
    })
    .await;
    let last = post(&clients, "last").await.unwrap();
    // Post ids are dense: every id up to `last` is an accepted post, and ann follows the author of all of them.
    let all: Vec<u64> = (1..=last).rev().collect();
    until("every accepted post is on the timeline", LIMIT, || async {
        timeline(&clients).await == all
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_refuses_posts_and_delivers_accepted_ones() {
    let variables = vec![("HERALD_TOPOLOGY__POSTS__BYTES_MAX".into(), (1 << 20).to_string())];
    let herald = Herald::start(
        HERALD,
        Options {
            variables,
            ..Options::default()
        },
    )
    .await;
    let clients = herald.clients().await;
    herald.cli(&["follow", "ann", "bob"]).await;
    let text = "x".repeat(8_000);
    let mut accepted = Vec::new();
    let refusal = loop {
        match post(&clients, &text).await {
            Ok(id) => accepted.push(id),
            Err(status) => break status,
        }
        assert!(
            accepted.len() < 200,
            "a stream of 1 MiB accepted {} posts of 8 kB",
            accepted.len()
        );
    };
    assert_refused(&refusal, "STREAM_FULL");
    assert!(
        refusal
            .message()
            .contains("stream POSTS is full: raise topology.posts.bytes_max"),
        "{refusal:?}"
    );
    assert!(!accepted.is_empty());
    accepted.reverse();
    until("every accepted post is on the timeline", LIMIT, || async {
        timeline(&clients).await == accepted
    })
    .await;
}

/// The server has the streams with their old limits on disk when it starts with the new ones.
#[tokio::test(flavor = "multi_thread")]
async fn stream_limits_can_be_lowered_and_raised_by_a_restart() {
    let mut herald = Herald::start(HERALD, Options::default()).await;
    herald.cli(&["follow", "ann", "bob"]).await;
    let clients = herald.clients().await;
    let first = post(&clients, "with the default limits").await.unwrap();
    assert_eq!(herald.stop().await, 0);
    let streams = [
        "POSTS",
        "SLICES",
        "TIMELINE",
        "PUSH",
        "EVENTS",
        "LATER",
        "ADVISORIES",
        "DLQ",
        "REDRIVE",
    ];
    let lowered = streams.map(|stream| {
        let variable = format!("HERALD_TOPOLOGY__{stream}__BYTES_MAX");
        (variable, (1 << 20).to_string())
    });
    let mut posts = vec![first];
    for variables in [lowered.into(), Vec::new()] {
        herald.options_mut().variables = variables;
        herald.restart().await;
        let clients = herald.clients().await;
        posts.insert(0, post(&clients, "with other limits").await.unwrap());
        until("all posts are on the timeline", LIMIT, || async {
            timeline(&clients).await == posts
        })
        .await;
        assert_eq!(herald.stop().await, 0);
    }
}
