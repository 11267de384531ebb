//! Clients that flood, stall or read nothing, beside live traffic.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use harness::{Clients, Herald, Options, until};
use herald_proto::v1;
use tokio::net::TcpStream;
use tonic::Code;

use crate::{
    HERALD,
    audit::pause,
    raw_client::{RawClient, frame, send_each},
};

const LIMIT: Duration = Duration::from_mins(1);
/// The time in which a mesh stops although clients read nothing. Without them it takes a second.
const STOP_LIMIT: Duration = Duration::from_secs(8);

async fn import(clients: &Clients, followers: usize, author: &str) {
    let follows: Vec<v1::Follow> = (0..followers)
        .map(|n| v1::Follow {
            follower_id: format!("follower-{n}"),
            author_id: author.into(),
            notify: None,
        })
        .collect();
    let batches: Vec<_> = follows
        .chunks(1_000)
        .map(|follows| v1::ImportFollowsRequest {
            follows: follows.to_vec(),
        })
        .collect();
    clients
        .graph()
        .import_follows(futures::stream::iter(batches))
        .await
        .unwrap();
}

fn address(herald: &Herald) -> String {
    herald.url().trim_start_matches("http://").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn live_posts_are_delivered_beside_hostile_clients() {
    let mut herald = Herald::start(HERALD, Options::default()).await;
    let clients = herald.clients().await;
    import(&clients, 10, "bob").await;

    // Connections that say nothing, on both ports.
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(address(&herald)).await.unwrap());
        silent.push(TcpStream::connect(herald.http()).await.unwrap());
    }
    // Calls without a body, streams whose answers nobody reads, streams that never go on.
    let hostile = RawClient::connect(&address(&herald), 0).await;
    let mut calls = Vec::new();
    for _ in 0..200 {
        calls.push(hostile.begin("PostService/SubmitPost").await);
        calls.push(hostile.begin("PostService/SubmitPosts").await);
        let watch = v1::WatchTimelineRequest {
            user_id: "follower-1".into(),
            ..Default::default()
        };
        calls.push(hostile.call("TimelineService/WatchTimeline", &watch).await);
    }
    let import = frame(&v1::ImportFollowsRequest {
        follows: vec![v1::Follow {
            follower_id: "a".into(),
            author_id: "b".into(),
            notify: None,
        }],
    });
    for _ in 0..50 {
        let mut call = hostile.begin("GraphService/ImportFollows").await;
        call.requests.send_data(import.clone(), false).unwrap();
        calls.push(call);
    }
    let audit = hostile
        .call("AuditService/RunAudit", &v1::RunAuditRequest::default())
        .await;

    for n in 1..=20 {
        let follow = v1::FollowRequest {
            follow: Some(v1::Follow {
                follower_id: format!("live-{n}"),
                author_id: "bob".into(),
                notify: None,
            }),
        };
        clients.graph().follow(follow).await.unwrap();
        let post = v1::SubmitPostRequest {
            author_id: "bob".into(),
            text: format!("post {n}"),
            ..Default::default()
        };
        clients.posts().submit_post(post).await.unwrap();
    }
    until("the posts are delivered", LIMIT, || async {
        let request = v1::ListTimelineRequest {
            user_id: "live-1".into(),
            ..Default::default()
        };
        let timeline = clients.timelines().list_timeline(request).await.unwrap();
        timeline.into_inner().entries.len() == 20
    })
    .await;

    // The hostile clients stay, and don't delay the shutdown.
    let began = Instant::now();
    assert_eq!(herald.stop().await, 0);
    assert!(began.elapsed() < STOP_LIMIT, "{:?}", began.elapsed());
    drop((silent, calls, audit));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_that_nobody_reads_gives_up_its_turn_and_does_not_delay_the_shutdown() {
    let mut herald = Herald::start(HERALD, Options::default()).await;
    let clients = herald.clients().await;
    // Lost deliveries: each is a finding, and all of them are more than the buffers on the way.
    import(&clients, 20_000, "bob").await;
    pause(&herald, "2100-01-01T00:00:00Z").await;
    herald.cli(&["post", "--author", "bob", "--text", "one"]).await;
    let broker = jetstream::new(herald.broker().await);
    // Chunks of 4,096.
    until("the post is planned", LIMIT, || async {
        let stream = broker.get_stream("TIMELINE").await.unwrap();
        stream.cached_info().state.messages == 5
    })
    .await;
    broker
        .get_stream("TIMELINE")
        .await
        .unwrap()
        .purge()
        .await
        .unwrap();
    pause(&herald, "").await;
    until("nothing is left to do", LIMIT, || clients.is_idle()).await;

    let hostile = RawClient::connect(&address(&herald), 0).await;
    let request = v1::RunAuditRequest {
        post_id: 1,
        ..Default::default()
    };
    let unread = hostile
        .call("AuditService/RunAudit", &request)
        .await
        .headers()
        .await;
    until("the turn is free", LIMIT, || {
        let mut audits = clients.audit();
        async move {
            match audits.run_audit(request).await {
                Ok(_) => true,
                Err(status) => {
                    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                    false
                }
            }
        }
    })
    .await;

    let unread_again = hostile.call("AuditService/RunAudit", &request).await;
    let began = Instant::now();
    assert_eq!(herald.stop().await, 0);
    assert!(began.elapsed() < STOP_LIMIT, "{:?}", began.elapsed());
    drop((unread, unread_again));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_with_a_follow_a_message_is_as_quick_as_one_in_batches() {
    const COUNT: usize = 20_000;
    let mut herald = Herald::start(HERALD, Options::default()).await;
    let client = RawClient::connect(&address(&herald), 1 << 30).await;
    let mut call = client.begin("GraphService/ImportFollows").await;
    let message = |n: usize| {
        frame(&v1::ImportFollowsRequest {
            follows: vec![v1::Follow {
                follower_id: format!("f{n}"),
                author_id: "a".into(),
                notify: None,
            }],
        })
    };
    send_each(&mut call.requests, (0..COUNT).map(message)).await;
    let response: v1::ImportFollowsResponse = call.outcome().await.message();
    assert_eq!(response.imported_count, COUNT as u64);
    assert_eq!(herald.stop().await, 0);
}
