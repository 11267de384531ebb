//! A full disk and a full stream: posts are refused with a clear error, and what was accepted is delivered.

use std::{path::Path, time::Duration};

use harness::{Clients, Herald, Options, until};
use herald_proto::v1;
use rustix::fs::{FallocateFlags, statvfs};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::HERALD;

const LIMIT: Duration = Duration::from_secs(30);

/// How much others may use of the disk meanwhile without the test noticing, MiB.
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

fn refused(status: &Status, reason: &str) {
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
async fn a_full_disk_refuses_posts_until_there_is_room_again() {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    // The disk counts as full for posts when the margin is used up; twice the minimum is where posts are refused.
    let free_mb_min = (free_mb(parent)
        .checked_sub(MARGIN_MB)
        .expect("some GiB of free disk"))
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
    let first = post(&clients, "there is room").await.unwrap();

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
    refused(&post(&clients, "one too many").await.unwrap_err(), "STORE_FULL");
    let before = timeline(&clients).await;
    assert!(before.contains(&first));

    drop(ballast);
    until("there is room again", LIMIT, || async {
        post(&clients, "room again").await.is_ok()
    })
    .await;
    let last = post(&clients, "last").await.unwrap();
    // Post ids are dense: every number up to the last is an accepted post, and ann follows the author of all.
    let all: Vec<u64> = (1..=last).rev().collect();
    until("every accepted post is there", LIMIT, || async {
        timeline(&clients).await == all
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_refuses_posts_and_delivers_what_it_took() {
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
            "1 MiB took {} posts of 8 kB",
            accepted.len()
        );
    };
    refused(&refusal, "STREAM_FULL");
    assert!(!accepted.is_empty());
    accepted.reverse();
    until("every accepted post is there", LIMIT, || async {
        timeline(&clients).await == accepted
    })
    .await;
}
