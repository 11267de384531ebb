//! The main job: a post reaches the timeline of every follower and the device of every follower who wants pushes.

use std::{collections::BTreeSet, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use futures::{StreamExt, stream};
use harness::{Herald, Options, facebook_graph, until_some};
use herald_proto::v1;
use herald_push_sink::Running;
use serde_json::Value;

use crate::HERALD;

/// Far above the usual duration: this test doesn't measure performance.
const LIMIT: Duration = Duration::from_mins(1);

/// Whether a channel of `herald delivery` has exactly `count` deliveries and all of them are delivered.
fn all_delivered(delivery: &Value, channel: &str, count: usize) -> bool {
    let counts = &delivery["channels"][channel];
    let is = |state: &str, count: usize| counts[format!("{state}_count")].as_u64() == Some(count as u64);
    is("targeted", count)
        && is("delivered", count)
        && ["suppressed", "expired", "pending", "dead"]
            .into_iter()
            .all(|state| is(state, 0))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_reaches_every_follower_of_a_real_graph() {
    let herald = Herald::start(
        HERALD,
        Options {
            arguments: vec!["--allow-private-endpoints".into()],
            ..Options::default()
        },
    )
    .await;
    let clients = herald.clients().await;
    let edges = facebook_graph();

    let imported = herald
        .cli(&["import", "follows", harness::FACEBOOK, "--mutual"])
        .await;
    assert_eq!(imported["imported_count"], 176_468, "{imported}");

    // Every tenth follower of 107 wants pushes and has a device.
    let followers = &edges.followers["107"];
    assert_eq!(followers.len(), 1_045);
    let opted_in: BTreeSet<&String> = followers.iter().step_by(10).collect();
    let sink = Running::start().await.unwrap();
    for user in &opted_in {
        let follow = v1::Follow {
            follower_id: (*user).clone(),
            author_id: "107".into(),
            notify: Some(true),
        };
        clients
            .graph()
            .follow(v1::FollowRequest { follow: Some(follow) })
            .await
            .unwrap();
        let webhook = sink.webhook(user);
        let address = v1::register_device_request::Address::Webhook(v1::Webhook {
            url: webhook.url,
            secret: webhook.secret,
        });
        let device = v1::RegisterDeviceRequest {
            user_id: (*user).clone(),
            address: Some(address),
        };
        clients.devices().register_device(device).await.unwrap();
    }

    let posted = herald.cli(&["post", "--author", "107", "--text", "hi"]).await;
    assert_eq!(
        posted["post_id"], 1,
        "the first post of an empty mesh has id 1: {posted}"
    );

    until_some("all deliveries are delivered", LIMIT, || async {
        let delivery = herald.cli(&["delivery", "1"]).await;
        (all_delivered(&delivery, "timeline", 1_045) && all_delivered(&delivery, "push", opted_in.len()))
            .then_some(())
    })
    .await;

    let timelines: Vec<_> = stream::iter(followers)
        .map(|user| {
            let mut timelines = clients.timelines();
            async move {
                let request = v1::ListTimelineRequest {
                    user_id: user.clone(),
                    ..v1::ListTimelineRequest::default()
                };
                timelines
                    .list_timeline(request)
                    .await
                    .unwrap()
                    .into_inner()
                    .entries
            }
        })
        .buffer_unordered(32)
        .collect()
        .await;
    assert_eq!(timelines.len(), 1_045);
    for entries in timelines {
        let posts: Vec<_> = entries.into_iter().filter_map(|entry| entry.post).collect();
        assert_eq!(posts.len(), 1);
        assert_eq!(
            (
                posts[0].post_id,
                posts[0].author_id.as_str(),
                posts[0].text.as_str()
            ),
            (1, "107", "hi")
        );
    }

    let received = sink.entries();
    let recipients: BTreeSet<&String> = received.iter().map(|entry| &entry.recipient_id).collect();
    assert_eq!(recipients, opted_in);
    assert_eq!(received.len(), opted_in.len(), "each device received one push");

    // The timeline of a user who doesn't follow 107 stays empty.
    let stranger = edges
        .followers
        .keys()
        .find(|user| *user != "107" && !followers.contains(*user))
        .unwrap();
    let timeline = herald.cli(&["timeline", stranger]).await;
    assert_eq!(timeline["entries"], Value::Array(Vec::new()));

    // Analytics counts both channels.
    let stats = until_some("analytics has counted the post", LIMIT, || async {
        let mut analytics = clients.analytics();
        let stats = analytics
            .get_post_stats(v1::GetPostStatsRequest { post_id: 1 })
            .await
            .ok()?
            .into_inner();
        let totals = stats.totals?;
        (totals.timeline_delivered_count >= 1_045 && totals.push_delivered_count >= opted_in.len() as u64)
            .then_some(totals)
    })
    .await;
    assert_eq!(stats.timeline_delivered_count, 1_045);
    assert_eq!(stats.push_delivered_count, opted_in.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_push_arrives_encrypted_and_signed() {
    let mut herald = Herald::start(
        HERALD,
        Options {
            arguments: vec!["--allow-private-endpoints".into()],
            ..Options::default()
        },
    )
    .await;
    let clients = herald.clients().await;
    let sink = Running::start().await.unwrap();
    let follow = v1::Follow {
        follower_id: "reader".into(),
        author_id: "writer".into(),
        notify: Some(true),
    };
    clients
        .graph()
        .follow(v1::FollowRequest { follow: Some(follow) })
        .await
        .unwrap();
    let subscription = sink.subscription("browser");
    let address = v1::register_device_request::Address::WebPush(v1::WebPush {
        endpoint: subscription.endpoint.clone(),
        p256dh: BASE64URL.encode(&subscription.p256dh),
        auth: BASE64URL.encode(&subscription.auth),
    });
    let device = v1::RegisterDeviceRequest {
        user_id: "reader".into(),
        address: Some(address),
    };
    clients.devices().register_device(device).await.unwrap();

    herald
        .cli(&["post", "--author", "writer", "--text", "encrypted, not stirred"])
        .await;
    let received = tokio::time::timeout(LIMIT, sink.wait_for(1)).await.unwrap();
    assert_eq!(received[0].text, "encrypted, not stirred");
    assert_eq!(received[0].recipient_id, "reader");
    assert_eq!(herald.stop().await, 0, "{}", herald.log());
}
