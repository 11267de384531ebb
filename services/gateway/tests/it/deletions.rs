//! DeletePost.

use std::time::Duration;

use herald_gateway::Config;
use herald_mesh::{TopologyConfig, consumers, streams};
use herald_model::{PostId, time::Timestamp};
use herald_proto::v1;
use tonic::Code;

use crate::harness::{Setup, World, fields, reason};

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_post_is_not_found_once_the_call_returns() {
    let world = World::start().await;
    let post_id = world.post("107", "text").await;
    let delete = |author: &str| v1::DeletePostRequest {
        post_id,
        author_id: author.into(),
        any_author: false,
    };
    let any_author = |author: &str| v1::DeletePostRequest {
        any_author: true,
        ..delete(author)
    };
    for unclear in [delete(""), any_author("107")] {
        let status = world.posts().delete_post(unclear).await.unwrap_err();
        assert_eq!(fields(&status), ["author_id"]);
    }
    let status = world.posts().delete_post(delete("108")).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::PermissionDenied, "NOT_THE_AUTHOR")
    );

    world.posts().delete_post(delete("107")).await.unwrap();
    let status = world
        .posts()
        .get_post(v1::GetPostRequest { post_id })
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "POST_NOT_FOUND")
    );
    let stored = world.stores.posts.get(&[PostId(post_id)]).await.unwrap();
    assert!(stored[0].as_ref().unwrap().deleted_at.is_some());
    // A repeated call for any author.
    world.posts().delete_post(any_author("")).await.unwrap();
    assert_eq!(world.mesh.last_sequence("POSTS").await.unwrap(), 2);
    // The sequence of the deletion is not a post id.
    for post_id in [2, 99, u64::MAX] {
        let get = world
            .posts()
            .get_post(v1::GetPostRequest { post_id })
            .await
            .unwrap_err();
        let delete = v1::DeletePostRequest {
            post_id,
            ..any_author("")
        };
        let delete = world.posts().delete_post(delete).await.unwrap_err();
        assert_eq!((get.code(), delete.code()), (Code::NotFound, Code::NotFound));
    }
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_deletion_is_detected_while_the_archive_consumer_lags() {
    let world = World::start_with(Setup {
        topology: TopologyConfig {
            dedupe_window_seconds: 1,
            ..TopologyConfig::default()
        },
        config: Config {
            delete_wait_ms: 0,
            ..Setup::default().config
        },
        ..Setup::default()
    })
    .await;
    let pause_end = Timestamp::now().plus(Duration::from_mins(5));
    let paused = world
        .mesh
        .pause(streams::POSTS, consumers::ARCHIVE, pause_end)
        .await;
    paused.unwrap();
    let delete = v1::DeletePostRequest {
        post_id: world.post("107", "text").await,
        author_id: "107".into(),
        any_author: false,
    };
    world.posts().delete_post(delete.clone()).await.unwrap();
    assert_eq!(world.mesh.last_sequence("POSTS").await.unwrap(), 2);
    let get = v1::GetPostRequest {
        post_id: delete.post_id,
    };
    let status = world.posts().get_post(get).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "the deletion was answered");
    world.wait_until_dedupe_window_passed().await;
    let before = world.mesh.last_sequence("POSTS").await.unwrap();
    world.posts().delete_post(delete).await.unwrap();
    assert_eq!(world.mesh.last_sequence("POSTS").await.unwrap(), before);
    world.stop().await.unwrap();
}
