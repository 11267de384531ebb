//! Clients that flood, stall or leave answers unread, beside others who notice nothing of it.

use std::time::Duration;

use futures::FutureExt as _;
use herald_gateway::Config;
use herald_proto::v1;

use crate::{
    harness::{Setup, World, submit, wait_until, with_timeout},
    raw_client::{RawClient, frame, send_each},
};

/// A window in which every answer fits.
const WIDE: u32 = 1 << 30;

async fn start(config: Config) -> World {
    World::start_with(Setup {
        config,
        ..Setup::default()
    })
    .await
}

/// Stores posts of an author, which make a page of 3 MiB.
async fn store_large_page(world: &World, author: &str) {
    let text = "😀".repeat(10_000);
    let requests = (0..90).map(|_| v1::SubmitPostsRequest {
        post: Some(submit(author, &text)),
    });
    let requests = futures::stream::iter(requests.collect::<Vec<_>>());
    world.posts().submit_posts(requests).await.unwrap();
    world.wait_until_archived().await;
}

fn list_posts(author: &str) -> v1::ListPostsRequest {
    v1::ListPostsRequest {
        author_id: author.into(),
        page_size: 200,
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_many_small_messages_is_taken() {
    const COUNT: usize = 20_000;
    let world = World::start().await;
    let client = RawClient::connect(&world.address, WIDE).await;
    let mut call = client.begin("PostService/SubmitPosts").await;
    let message = frame(&v1::SubmitPostsRequest {
        post: Some(submit("a", "b")),
    });
    send_each(&mut call.requests, std::iter::repeat_n(message, COUNT)).await;
    let response: v1::SubmitPostsResponse = call.outcome().await.message();
    assert_eq!(response.accepted_count, COUNT as u64);
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarded_stream_of_many_small_messages_is_taken_and_stays_apart() {
    const COUNT: usize = 20_000;
    let world = World::start().await;
    let client = RawClient::connect(&world.address, WIDE).await;
    let mut call = client.begin("GraphService/ImportFollows").await;
    let message = frame(&v1::ImportFollowsRequest {
        follows: vec![v1::Follow {
            follower_id: "a".into(),
            author_id: "b".into(),
            notify: None,
        }],
    });
    send_each(&mut call.requests, std::iter::repeat_n(message, COUNT)).await;
    let response: v1::ImportFollowsResponse = call.outcome().await.message();
    assert_eq!(response.imported_count, COUNT as u64);
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_the_service_does_not_take_leave_other_calls_alone() {
    let world = World::start().await;
    world.graph.state.lock().stalled = true;
    let client = RawClient::connect(&world.address, WIDE).await;
    let message = frame(&v1::ImportFollowsRequest {
        follows: vec![v1::Follow::default(); 10],
    });
    let mut calls = Vec::new();
    for _ in 0..20 {
        let mut call = client.begin("GraphService/ImportFollows").await;
        // More than every window on the way.
        while call.requests.capacity() == 0 {
            call.requests.reserve_capacity(1 << 20);
            let capacity = std::future::poll_fn(|cx| call.requests.poll_capacity(cx));
            with_timeout("the gateway takes requests", capacity)
                .await
                .unwrap()
                .unwrap();
        }
        for _ in 0..2_000 {
            call.requests.send_data(message.clone(), false).unwrap();
        }
        calls.push(call);
    }
    for _ in 0..20 {
        world
            .graph_client()
            .count_followers(v1::CountFollowersRequest::default())
            .await
            .unwrap();
        world.post("107", "text").await;
    }
    drop((calls, client));
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_without_a_body_keep_nobody_out_and_end() {
    let world = start(Config {
        calls_max: 30,
        request_wait_ms: 2_000,
        ..Setup::default().config
    })
    .await;
    let client = RawClient::connect(&world.address, WIDE).await;
    let mut calls = Vec::new();
    for _ in 0..60 {
        calls.push(client.begin("PostService/SubmitPost").await);
    }
    wait_until("calls are refused", async || world.metrics.calls_shed.get() > 0).await;
    world.post("107", "text").await;
    let (mut refused, mut ended) = (0, 0);
    for call in calls {
        match call.outcome().await.status.as_str() {
            "4" => ended += 1,
            "8" => refused += 1,
            other => panic!("status {other}"),
        }
    }
    // A third of the limit, and none stays.
    assert!((8..=11).contains(&ended), "{ended} ended, {refused} refused");
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_are_bounded_and_end() {
    let world = start(Config {
        buffered_bytes_max: 16 << 20,
        answer_wait_ms: 3_000,
        ..Setup::default().config
    })
    .await;
    store_large_page(&world, "107").await;
    let client = RawClient::connect(&world.address, 0).await;
    let (mut unread, mut refused) = (Vec::new(), 0);
    for _ in 0..20 {
        let call = client.call("PostService/ListPosts", &list_posts("107")).await;
        let (headers, body) = call.headers().await;
        match headers.get("grpc-status") {
            None => unread.push(body),
            Some(status) => {
                assert_eq!(status, "8");
                refused += 1;
            }
        }
    }
    // Of 16 MiB, a connection may have a third.
    assert_eq!((unread.len(), refused), (2, 18));
    // Another caller gets the same page.
    let page = world.posts().list_posts(list_posts("107")).await.unwrap();
    assert!(page.into_inner().posts.len() > 50);
    wait_until("the unread answers end", async || {
        world.metrics.answers_cut.get() == unread.len() as u64
    })
    .await;
    // Their bytes are free again.
    let call = client.call("PostService/ListPosts", &list_posts("107")).await;
    assert_eq!(call.headers().await.0.get("grpc-status"), None);
    world.stop().await.unwrap();
}

/// The server takes the rest of an answer as soon as it can send one byte of it.
#[tokio::test(flavor = "multi_thread")]
async fn small_answers_of_which_a_byte_is_read_end() {
    const COUNT: u64 = 8;
    let world = start(Config {
        calls_max: 30,
        answer_wait_ms: 2_000,
        ..Setup::default().config
    })
    .await;
    let post = world.post("107", "text").await;
    let client = RawClient::connect(&world.address, 1).await;
    let mut unread = Vec::new();
    let request = v1::GetPostRequest { post_id: post };
    for _ in 0..COUNT {
        let call = client.call("PostService/GetPost", &request).await;
        let (headers, body) = call.headers().await;
        assert_eq!(headers.get("grpc-status"), None);
        unread.push(body);
    }
    wait_until("the unread answers end", async || {
        world.metrics.answers_cut.get() == COUNT
    })
    .await;
    // Their shares are free again.
    for _ in 0..COUNT {
        let call = client.call("PostService/GetPost", &request).await;
        assert_eq!(call.headers().await.0.get("grpc-status"), None);
    }
    drop((unread, client));
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_answers_of_forwarded_calls_leave_other_calls_alone() {
    let world = World::start().await;
    world.graph.state.lock().page = 2_000;
    let client = RawClient::connect(&world.address, 0).await;
    let mut unread = Vec::new();
    for _ in 0..60 {
        let request = v1::ListFollowersRequest::default();
        let call = client.call("GraphService/ListFollowers", &request).await;
        let (headers, body) = call.headers().await;
        assert_eq!(headers.get("grpc-status"), None);
        unread.push(body);
    }
    for _ in 0..20 {
        world
            .graph_client()
            .count_followers(v1::CountFollowersRequest::default())
            .await
            .unwrap();
    }
    drop((unread, client));
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_who_neither_send_nor_read_do_not_delay_the_shutdown() {
    let world = World::start().await;
    let client = RawClient::connect(&world.address, 0).await;
    let request = v1::WatchTimelineRequest {
        user_id: "7".into(),
        ..Default::default()
    };
    let call = client.call("TimelineService/WatchTimeline", &request).await;
    let _unread = call.headers().await;
    let mut bodiless = Vec::new();
    for path in [
        "PostService/SubmitPost",
        "PostService/SubmitPosts",
        "GraphService/ImportFollows",
    ] {
        bodiless.push(client.begin(path).await);
    }
    wait_until("the import has reached the service", async || {
        world.graph.state.lock().imports == 1
    })
    .await;
    let stopped = tokio::time::timeout(Duration::from_secs(5), world.stop()).await;
    stopped.expect("the gateway stops").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarded_streams_of_one_client_leave_room_for_others() {
    let world = start(Config {
        forwarded_streams_max: 12,
        ..Setup::default().config
    })
    .await;
    let client = RawClient::connect(&world.address, WIDE).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(client.begin("GraphService/ImportFollows").await);
    }
    wait_until("the streams have reached the service", async || {
        world.graph.state.lock().imports == 4
    })
    .await;
    let refused = client.begin("GraphService/ImportFollows").await.outcome().await;
    assert_eq!(refused.status, "8");
    let import = v1::ImportFollowsRequest {
        follows: vec![v1::Follow::default()],
    };
    let imported = world
        .graph_client()
        .import_follows(futures::stream::iter([import]))
        .await;
    assert_eq!(imported.unwrap().into_inner().imported_count, 1);
    drop((open, client));
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_never_complete_take_little_memory() {
    let world = start(Config {
        buffered_bytes_max: 16 << 20,
        request_wait_ms: 3_000,
        ..Setup::default().config
    })
    .await;
    let client = RawClient::connect(&world.address, WIDE).await;
    let post = submit("107", &"a".repeat(1_000_000));
    let streamed = v1::SubmitPostsRequest {
        post: Some(post.clone()),
    };
    for (path, request) in [
        ("PostService/SubmitPost", frame(&post)),
        ("PostService/SubmitPosts", frame(&streamed)),
    ] {
        let mut calls = Vec::new();
        for _ in 0..20 {
            let mut call = client.begin(path).await;
            call.requests.send_data(request.slice(..900_000), false).unwrap();
            calls.push(call);
        }
        world.post("107", "text").await;
        let (mut refused, mut ended) = (0, 0);
        for call in calls {
            match call.outcome().await.status.as_str() {
                "4" => ended += 1,
                "8" => refused += 1,
                other => panic!("status {other}"),
            }
        }
        // A third of 16 MiB, of which the first 16 KiB of a call don't count.
        assert!(
            (4..=8).contains(&ended),
            "{path}: {ended} ended, {refused} refused"
        );
    }
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_that_nobody_reads_are_bounded() {
    let world = start(Config {
        buffered_bytes_max: 16 << 20,
        ..Setup::default().config
    })
    .await;
    let text = "😀".repeat(10_000);
    for _ in 0..80 {
        let post = world.post("107", &text).await;
        world.deliver(post, "7", false).await;
    }
    world.wait_until_archived().await;
    let client = RawClient::connect(&world.address, 0).await;
    let request = v1::WatchTimelineRequest {
        user_id: "7".into(),
        snapshot_size: 200,
        ..Default::default()
    };
    let mut open = Vec::new();
    for _ in 0..20 {
        let call = client.call("TimelineService/WatchTimeline", &request).await;
        open.push(call.headers().await.1);
    }
    let mut refused = 0;
    wait_until("all but two are refused", async || {
        for mut body in std::mem::take(&mut open) {
            match body.data().now_or_never() {
                Some(None) => {
                    let trailers = body.trailers().await.unwrap().unwrap();
                    assert_eq!(trailers["grpc-status"], "8");
                    refused += 1;
                }
                Some(Some(data)) => panic!("{data:?} within a window of 0"),
                None => open.push(body),
            }
        }
        refused == 18
    })
    .await;
    assert_eq!(open.len(), 2);
    drop((open, client));
    world.stop().await.unwrap();
}
