//! Starting and stopping.

use std::time::Duration;

use futures::FutureExt as _;
use herald_gateway::{Config, Error};
use herald_model::{Lane, Post, PostId, PushContent, UserId, UserKey, time::Timestamp};
use herald_recovery::Problem;
use herald_store::Archived;

use crate::harness::{Setup, World, with_timeout};

pub(crate) fn post(id: u64) -> Post {
    Post {
        id: PostId(id),
        author: UserKey(1),
        author_id: UserId::new("107").unwrap(),
        request_id: "6b1e7f0c-1f5d-4a3e-9d55-0c7f6b1b2a10".into(),
        text: "text".into(),
        links: Vec::new(),
        media_urls: Vec::new(),
        lane: Lane::Normal,
        accepted_at: Timestamp::now(),
        push_ttl: Duration::from_secs(1),
        push: PushContent::default(),
        deleted_at: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_another_stream_is_refused() {
    let before = |stores: herald_store::Stores| {
        async move { stores.posts.archive(&[Archived::Created(post(9))]).await.unwrap() }.boxed()
    };
    let setup = Setup {
        before: Some(Box::new(before)),
        await_ready: false,
        ..Setup::default()
    };
    let world = World::start_with(setup).await;
    let error = with_timeout("the gateway stops", world.gateway)
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Streams(ref problems) if problems.0 == [Problem::LostTail {
                stream: "POSTS".into(),
                last: 0,
                known: 9
            }]
        ),
        "{error:?}"
    );
    let message = error.to_string();
    assert!(
        message.contains("it ends at 0, and message 9 was seen in it"),
        "{message}"
    );
    assert!(message.contains("herald recover"), "{message}");
    assert!(!world.readiness.failing().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_configuration_is_refused() {
    let config = Config {
        calls_max: 0,
        ..Config::default()
    };
    let world = World::start_with(Setup {
        config,
        await_ready: false,
        ..Setup::default()
    })
    .await;
    let error = with_timeout("the gateway stops", world.gateway)
        .await
        .unwrap()
        .unwrap_err();
    assert!(matches!(error, Error::Config(_)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_gateway_archives_the_remaining_posts() {
    let mut world = World::start().await;
    for i in 0..200 {
        world.post("107", &format!("post {i}")).await;
    }
    world.restart().await;
    world.wait_until_archived().await;
    let ids: Vec<_> = (1..=200).map(PostId).collect();
    let archived = world.stores.posts.get(&ids).await.unwrap();
    assert_eq!(
        archived.iter().flatten().map(|post| post.id).collect::<Vec<_>>(),
        ids
    );
    world.stop().await.unwrap();
}
