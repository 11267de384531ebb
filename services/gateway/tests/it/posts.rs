//! PostService and the archive consumer.

use std::time::Duration;

use herald_mesh::{StreamLimits, Subject, TopologyConfig, consumers, streams};
use herald_model::{Lane, PostId, time::Timestamp};
use herald_proto::{mesh_v1, v1};
use tonic::Code;
use tonic_types::{RpcStatusExt as _, StatusExt as _};

use crate::harness::{Setup, World, fields, reason, submit};

const REQUEST: &str = "6b1e7f0c-1f5d-4a3e-9d55-0c7f6b1b2a10";

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_is_accepted_once() {
    let world = World::start().await;
    let request = v1::SubmitPostRequest {
        request_id: REQUEST.into(),
        links: vec!["https://example.org/a".into()],
        lane: v1::Lane::High.into(),
        push_ttl: Some(prost_types::Duration {
            seconds: 90,
            nanos: 0,
        }),
        push_title: "title".into(),
        push_collapse_key: "match".into(),
        push_data: [("k".into(), "v".into())].into(),
        ..submit("107", "hello")
    };
    let first = world
        .posts()
        .submit_post(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!((first.post_id, first.duplicate), (1, false));
    assert_eq!(first.request_id, REQUEST);

    // The message that fan-out receives.
    let message = world.mesh.message("POSTS", 1).await.unwrap().unwrap();
    assert_eq!(
        Subject::parse(&message.subject),
        Some(Subject::PostCreated(Lane::High))
    );
    let created: mesh_v1::PostCreated = message.decode().unwrap();
    assert_eq!(created.push_ttl_seconds, 90);
    assert_eq!(message.id(), Some(format!("post/107/{REQUEST}").as_str()));

    // Another content is refused: at once, by the broker's dedupe window, and after archiving, by the store.
    let reused = [
        v1::SubmitPostRequest {
            text: "other".into(),
            ..request.clone()
        },
        v1::SubmitPostRequest {
            links: vec![],
            media_urls: vec!["https://example.org/m".into()],
            ..request.clone()
        },
        v1::SubmitPostRequest {
            lane: v1::Lane::Low.into(),
            push_ttl: None,
            ..request.clone()
        },
        v1::SubmitPostRequest {
            push_title: String::new(),
            push_collapse_key: "other".into(),
            push_data: [("k".into(), "other".into())].into(),
            ..request.clone()
        },
    ];
    let check_reused = async |world: &World| {
        for (reused, fields) in reused.iter().zip([
            "text",
            "links, media_urls",
            "lane, push_ttl",
            "push_title, push_collapse_key, push_data",
        ]) {
            let status = world.posts().submit_post(reused.clone()).await.unwrap_err();
            assert_eq!(
                (status.code(), reason(&status).as_str()),
                (Code::AlreadyExists, "REQUEST_ID_REUSED")
            );
            let message = format!("belongs to post 1, which has other values of {fields};");
            assert!(status.message().contains(&message), "{status:?}");
        }
    };
    check_reused(&world).await;

    // A retry at once, and one after archiving with an upper-case id.
    let retry = world
        .posts()
        .submit_post(request.clone())
        .await
        .unwrap()
        .into_inner();
    world.wait_until_archived().await;
    check_reused(&world).await;
    let upper_case = v1::SubmitPostRequest {
        request_id: REQUEST.to_uppercase(),
        ..request.clone()
    };
    let later = world.posts().submit_post(upper_case).await.unwrap().into_inner();
    for response in [retry, later] {
        assert_eq!(
            response,
            v1::SubmitPostResponse {
                duplicate: true,
                ..first.clone()
            }
        );
    }
    // The same request id of another author is a new post, however alike the ids of the authors are.
    for (post_id, author) in (2..).zip(["108", " 107", "107 ", "\u{a0}107"]) {
        let other = v1::SubmitPostRequest {
            author_id: author.into(),
            ..request.clone()
        };
        let other = world.posts().submit_post(other).await.unwrap().into_inner();
        assert_eq!((other.post_id, other.duplicate), (post_id, false), "{author:?}");
    }

    let post = world
        .posts()
        .get_post(v1::GetPostRequest { post_id: 1 })
        .await
        .unwrap()
        .into_inner()
        .post
        .unwrap();
    assert_eq!((post.author_id.as_str(), post.text.as_str()), ("107", "hello"));
    assert_eq!(
        (post.lane(), post.links),
        (v1::Lane::High, vec!["https://example.org/a".to_owned()])
    );
    assert_eq!(post.accepted_time, first.accepted_time);
    assert_eq!(
        (post.push_title.as_str(), post.push_collapse_key.as_str()),
        ("title", "match")
    );
    assert_eq!(post.push_data, [("k".to_owned(), "v".to_owned())].into());
    assert_eq!(world.metrics.posts_duplicate.get(), 2);
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_detects_a_repeated_request_after_the_dedupe_window() {
    check_repeated_request(
        false,
        async |_| {},
        async |world| world.wait_until_archived().await,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_is_detected_while_the_archive_consumer_lags() {
    let pause = async |world: &World| {
        let pause_end = Timestamp::now().plus(Duration::from_mins(5));
        let paused = world
            .mesh
            .pause(streams::POSTS, consumers::ARCHIVE, pause_end)
            .await;
        paused.unwrap();
    };
    check_repeated_request(false, pause, async |_| {}).await;
}

/// The archive consumer lags, and the server that replies first reports an empty stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_is_detected_when_a_partitioned_server_reports_a_stale_end() {
    let pause_and_add_stale_replies = async |world: &World| {
        let pause_end = Timestamp::now().plus(Duration::from_mins(5));
        let paused = world
            .mesh
            .pause(streams::POSTS, consumers::ARCHIVE, pause_end)
            .await;
        paused.unwrap();
        world.partitioned_server.as_ref().unwrap().become_reachable();
    };
    check_repeated_request(true, pause_and_add_stale_replies, async |_| {}).await;
}

/// Sends a request before and after its dedupe window.
async fn check_repeated_request(
    partitioned_server: bool,
    before: impl AsyncFnOnce(&World),
    between: impl AsyncFnOnce(&World),
) {
    let topology = TopologyConfig {
        dedupe_window_seconds: 1,
        ..TopologyConfig::default()
    };
    let world = World::start_with(Setup {
        topology,
        partitioned_server,
        ..Setup::default()
    })
    .await;
    before(&world).await;
    let request = v1::SubmitPostRequest {
        request_id: REQUEST.into(),
        ..submit("107", "hello")
    };
    let first = world
        .posts()
        .submit_post(request.clone())
        .await
        .unwrap()
        .into_inner();
    world.wait_until_dedupe_window_passed().await;
    between(&world).await;
    let reused = v1::SubmitPostRequest {
        text: "other".into(),
        ..request.clone()
    };
    let status = world.posts().submit_post(reused).await.unwrap_err();
    assert_eq!(reason(&status), "REQUEST_ID_REUSED");
    let retry = world.posts().submit_post(request).await.unwrap().into_inner();
    assert_eq!(
        retry,
        v1::SubmitPostResponse {
            duplicate: true,
            ..first
        }
    );
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_invalid_field_of_a_post_is_named_and_nothing_is_stored() {
    let world = World::start().await;
    let good = submit("107", "hello");
    let cases: Vec<(v1::SubmitPostRequest, &[&str])> = vec![
        (
            v1::SubmitPostRequest {
                text: String::new(),
                ..good.clone()
            },
            &["text"],
        ),
        (
            v1::SubmitPostRequest {
                text: "x".repeat(10_001),
                ..good.clone()
            },
            &["text"],
        ),
        (
            v1::SubmitPostRequest {
                author_id: String::new(),
                ..good.clone()
            },
            &["author_id"],
        ),
        (
            v1::SubmitPostRequest {
                author_id: "a".repeat(129),
                ..good.clone()
            },
            &["author_id"],
        ),
        (
            v1::SubmitPostRequest {
                author_id: "a\u{0}b".into(),
                ..good.clone()
            },
            &["author_id"],
        ),
        (
            v1::SubmitPostRequest {
                request_id: "not-a-uuid".into(),
                ..good.clone()
            },
            &["request_id"],
        ),
        (
            v1::SubmitPostRequest {
                lane: 9,
                ..good.clone()
            },
            &["lane"],
        ),
        (
            v1::SubmitPostRequest {
                links: vec!["ftp://example.org".into()],
                ..good.clone()
            },
            &["links[0]"],
        ),
        (
            v1::SubmitPostRequest {
                media_urls: vec!["https://e.org".into(); 17],
                ..good.clone()
            },
            &["media_urls"],
        ),
        (
            v1::SubmitPostRequest {
                push_ttl: Some(prost_types::Duration::default()),
                push_title: "a\nb".into(),
                push_collapse_key: "x".repeat(65),
                push_data: [(String::new(), String::new())].into(),
                ..good.clone()
            },
            &["push_ttl", "push_title", "push_collapse_key", "push_data"],
        ),
        (
            v1::SubmitPostRequest {
                request_id: "1".into(),
                text: String::new(),
                lane: -1,
                ..submit("", "")
            },
            &["request_id", "author_id", "text", "lane"],
        ),
    ];
    for (request, expected) in cases {
        let status = world.posts().submit_post(request.clone()).await.unwrap_err();
        assert_eq!(fields(&status), expected, "{request:?}");
    }
    for id in ["", "a\n"] {
        let request = v1::DeletePostRequest {
            post_id: 0,
            author_id: id.into(),
            any_author: false,
        };
        assert_eq!(
            fields(&world.posts().delete_post(request).await.unwrap_err()),
            ["post_id"]
        );
    }
    assert_eq!(
        fields(
            &world
                .posts()
                .get_post(v1::GetPostRequest { post_id: 0 })
                .await
                .unwrap_err()
        ),
        ["post_id"]
    );
    assert_eq!(world.mesh.last_sequence("POSTS").await.unwrap(), 0);
    let known = world
        .stores
        .users
        .find(&[herald_model::UserId::new("107").unwrap()])
        .await
        .unwrap();
    assert_eq!(known, [None], "no key was assigned");
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_refuses_posts_with_retry_info_and_loses_no_accepted_post() {
    let posts = StreamLimits {
        bytes_max: 1 << 20,
        ..TopologyConfig::default().posts
    };
    let topology = TopologyConfig {
        posts,
        ..TopologyConfig::default()
    };
    let world = World::start_with(Setup {
        topology,
        ..Setup::default()
    })
    .await;
    let text = "ü".repeat(10_000);
    let mut accepted = Vec::new();
    let status = loop {
        match world.posts().submit_post(submit("107", &text)).await {
            Ok(answer) => accepted.push(answer.into_inner().post_id),
            Err(status) => break status,
        }
    };
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::ResourceExhausted, "STREAM_FULL")
    );
    assert!(status.get_details_retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
    assert_eq!(accepted, (1..=accepted.len() as u64).collect::<Vec<_>>());
    for post_id in accepted {
        world
            .posts()
            .get_post(v1::GetPostRequest { post_id })
            .await
            .unwrap();
    }
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn submit_posts_returns_ids_and_failures_in_order() {
    let world = World::start().await;
    let request = |post: v1::SubmitPostRequest| v1::SubmitPostsRequest { post: Some(post) };
    let mut requests: Vec<_> = (0..1_000)
        .map(|i| request(submit(&format!("author-{}", i % 7), "hi")))
        .collect();
    requests[10] = request(submit("", "hi"));
    requests[20] = v1::SubmitPostsRequest { post: None };
    for index in [30, 31] {
        requests[index] = request(v1::SubmitPostRequest {
            request_id: REQUEST.into(),
            ..submit("107", "hi")
        });
    }
    let answer = world
        .posts()
        .submit_posts(futures::stream::iter(requests))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (answer.accepted_count, answer.duplicate_count, answer.failed_count),
        (998, 1, 2)
    );
    assert_eq!(answer.post_ids.len(), 1_000);
    assert_eq!((answer.post_ids[10], answer.post_ids[20]), (0, 0));
    assert_eq!(answer.post_ids[30], answer.post_ids[31]);
    let ids: Vec<_> = answer.post_ids.iter().filter(|id| **id != 0).collect();
    assert!(ids.is_sorted(), "ids in the order sent: {ids:?}");
    let failures: Vec<_> = answer
        .failures
        .iter()
        .map(|failure| {
            let status = failure.status.as_ref().unwrap();
            let violated = status.get_details_bad_request().unwrap().field_violations;
            assert_eq!(Code::from(status.code), Code::InvalidArgument);
            assert_eq!(status.get_details_error_info().unwrap().reason, "INVALID_FIELD");
            (failure.index, violated[0].field.clone())
        })
        .collect();
    assert_eq!(failures, [(10, "author_id".into()), (20, "post".into())]);
    for index in [0, 1, 500, 999] {
        let get = v1::GetPostRequest {
            post_id: answer.post_ids[index],
        };
        let post = world
            .posts()
            .get_post(get)
            .await
            .unwrap()
            .into_inner()
            .post
            .unwrap();
        assert_eq!(post.author_id, format!("author-{}", index % 7));
    }
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_messages_are_terminated_and_the_others_are_archived() {
    let world = World::start().await;
    world.publish_garbage(Subject::PostCreated(Lane::Normal)).await;
    world.publish_garbage(Subject::PostDeleted(Lane::Low)).await;
    let nameless = mesh_v1::PostCreated {
        author_key: 1,
        ..Default::default()
    };
    world
        .mesh
        .publish(Subject::PostCreated(Lane::Low), None, &nameless)
        .await
        .unwrap();
    let post_id = world.post("107", "fine").await;
    world.wait_until_archived().await;
    assert_eq!(world.stores.posts.last().await.unwrap(), Some(PostId(post_id)));
    for bad in 1..post_id {
        let status = world
            .posts()
            .get_post(v1::GetPostRequest { post_id: bad })
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
    }
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_are_accepted_while_the_graph_service_is_unavailable() {
    let world = World::start().await;
    world.graph.state.lock().down = true;
    assert_eq!(world.post("107", "hi").await, 1);
    assert_eq!(world.mesh.last_sequence("POSTS").await.unwrap(), 1);
    world.stop().await.unwrap();
}
