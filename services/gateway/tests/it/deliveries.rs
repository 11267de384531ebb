//! DeliveryService and MeshService.

use herald_model::{Channel, DeviceId, FollowVersion, PostId, Recipients, UserKey, time::Timestamp};
use herald_proto::v1;
use herald_store::{
    ChunkPlan, DeviceFailure, DeviceRetry, ExpectedRevision, FailedRecipient, Outcome, OutcomeDetails,
    PendingRecipient, PushFailure, Settlement, SlicePlan, SuppressedReason,
};
use tonic::Code;

use crate::harness::{World, fields, reason, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_are_counted_and_listed() {
    let world = World::start().await;
    let post_id = world.post("107", "hi").await;
    let get = async |post_id| {
        world
            .deliveries()
            .get_delivery(v1::GetDeliveryRequest { post_id })
            .await
    };
    // Accepted, but fan-out is not planned yet.
    let before = get(post_id).await.unwrap().into_inner();
    assert!(!before.planned);
    let channels: Vec<_> = before
        .channels
        .iter()
        .map(|c| (c.channel(), c.targeted_count))
        .collect();
    assert_eq!(channels, [(v1::Channel::Timeline, 0), (v1::Channel::Push, 0)]);

    let names: Vec<_> = (0..5).map(|i| format!("follower-{i}")).collect();
    let mut keys = Vec::new();
    for name in &names {
        keys.push(world.key(name).await);
    }
    let recipients = Recipients::from_sorted(keys);
    let chunk = ChunkPlan {
        channel: Channel::Timeline,
        recipients: recipients.clone(),
    };
    let plan = SlicePlan {
        post: PostId(post_id),
        author: UserKey(1),
        slice: 0,
        version: FollowVersion(1),
        chunks: vec![chunk],
        next_after: None,
    };
    world.stores.ledger.plan(plan).await.unwrap();
    let list = async |page_size, token: &str, state: v1::DeliveryState| {
        let request = v1::ListRecipientsRequest {
            post_id,
            channel: v1::Channel::Timeline.into(),
            state: state.into(),
            page_size,
            page_token: token.into(),
        };
        world
            .deliveries()
            .list_recipients(request)
            .await
            .unwrap()
            .into_inner()
    };
    let pending = list(0, "", v1::DeliveryState::Pending).await;
    assert_eq!(pending.recipients.len(), 5);

    let settled = Settlement {
        post: PostId(post_id),
        channel: Channel::Timeline,
        chunk: recipients.chunk_id(),
        base: ExpectedRevision::Any,
        outcome: Outcome::Delivered { count: 5 },
        at: Timestamp::now(),
        keep_claim: None,
    };
    world.stores.ledger.settle(&settled).await.unwrap();
    let after = get(post_id).await.unwrap().into_inner();
    assert!(after.planned);
    let timeline = &after.channels[0];
    assert_eq!(
        (
            timeline.targeted_count,
            timeline.delivered_count,
            timeline.pending_count
        ),
        (5, 5, 0)
    );
    assert!(timeline.first_delivered_time.is_some());

    let first = list(3, "", v1::DeliveryState::Unspecified).await;
    let second = list(3, &first.next_page_token, v1::DeliveryState::Unspecified).await;
    assert_eq!(second.next_page_token, "");
    let listed: Vec<_> = first.recipients.iter().chain(&second.recipients).collect();
    assert!(listed.iter().all(|r| r.state() == v1::DeliveryState::Delivered));
    assert_eq!(
        listed.iter().map(|r| &r.user_id).collect::<Vec<_>>(),
        names.iter().collect::<Vec<_>>()
    );
    assert_eq!(list(0, "", v1::DeliveryState::Dead).await.recipients, []);

    let status = get(99).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "POST_NOT_FOUND")
    );
    assert_eq!(fields(&get(0).await.unwrap_err()), ["post_id"]);
    let bad = v1::ListRecipientsRequest {
        state: 99,
        page_size: -1,
        ..Default::default()
    };
    let status = world.deliveries().list_recipients(bad).await.unwrap_err();
    assert_eq!(fields(&status), ["post_id", "channel", "state", "page_size"]);
    let unknown = v1::ListRecipientsRequest {
        post_id: 99,
        channel: v1::Channel::Push.into(),
        ..Default::default()
    };
    assert_eq!(
        world
            .deliveries()
            .list_recipients(unknown)
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_state_of_a_push_is_explained() {
    let world = World::start().await;
    let post_id = world.post("107", "hi").await;
    let names = ["no-device", "muted", "waiting", "dead"];
    let mut keys = Vec::new();
    for name in names {
        keys.push(world.key(name).await);
    }
    let recipients = Recipients::from_sorted(keys.iter().copied());
    let one = |index: usize| Recipients::from_sorted([keys[index]]);
    let chunks = [Channel::Timeline, Channel::Push].map(|channel| ChunkPlan {
        channel,
        recipients: recipients.clone(),
    });
    let plan = SlicePlan {
        post: PostId(post_id),
        author: UserKey(1),
        slice: 0,
        version: FollowVersion(1),
        chunks: chunks.into(),
        next_after: None,
    };
    world.stores.ledger.plan(plan).await.unwrap();
    let failure = |status: u16| PushFailure::new(&format!("webhook status {status}"), "hooks.example.org");
    let extended_to = Timestamp::now().plus(std::time::Duration::from_hours(1_000));
    let settled = Settlement {
        post: PostId(post_id),
        channel: Channel::Push,
        chunk: recipients.chunk_id(),
        base: ExpectedRevision::Revision(0),
        outcome: Outcome::Mixed {
            delivered: Recipients::default(),
            suppressed: Recipients::from_sorted(keys[..2].iter().copied()),
            expired: Recipients::default(),
            dead: one(3),
            details: OutcomeDetails {
                pending: vec![PendingRecipient {
                    user: keys[2],
                    done: vec![DeviceId(8)],
                    waiting: vec![DeviceRetry {
                        device: DeviceId(9),
                        attempts: 3,
                        next_at: Timestamp(60_000_000),
                        failure: failure(503),
                    }],
                    failed: Vec::new(),
                }],
                suppressed: vec![
                    (SuppressedReason::NoDevice, one(0)),
                    (SuppressedReason::Muted, one(1)),
                ],
                failed: vec![FailedRecipient {
                    user: keys[3],
                    generation: 0,
                    failures: vec![DeviceFailure {
                        device: Some(DeviceId(10)),
                        failure: failure(400),
                    }],
                }],
                generation: 1,
                // As after a redrive with a new time to live.
                expires_at: Some(extended_to),
            },
        },
        at: Timestamp::now(),
        keep_claim: None,
    };
    world.stores.ledger.settle(&settled).await.unwrap();

    let request = v1::ListRecipientsRequest {
        post_id,
        channel: v1::Channel::Push.into(),
        ..Default::default()
    };
    let listed = world.deliveries().list_recipients(request).await.unwrap();
    let listed = listed.into_inner().recipients;
    let reasons: Vec<_> = listed
        .iter()
        .map(|r| (r.user_id.as_str(), r.suppressed_reason()))
        .collect();
    assert_eq!(
        reasons,
        [
            ("no-device", v1::SuppressedReason::NoDevice),
            ("muted", v1::SuppressedReason::Muted),
            ("waiting", v1::SuppressedReason::Unspecified),
            ("dead", v1::SuppressedReason::Unspecified),
        ]
    );
    let failure = |device_id: &str, reason: &str| v1::DeviceFailure {
        device_id: device_id.into(),
        host: "hooks.example.org".into(),
        reason: reason.into(),
    };
    assert_eq!(listed[2].accepted_device_ids, ["8"]);
    assert_eq!(
        listed[2].waiting_devices,
        [v1::WaitingDevice {
            failure: Some(failure("9", "webhook status 503")),
            attempt_count: 3,
            next_attempt_time: Some(prost_types::Timestamp {
                seconds: 60,
                nanos: 0
            }),
        }]
    );
    assert_eq!(listed[3].failures, [failure("10", "webhook status 400")]);

    let request = v1::GetDeliveryRequest { post_id };
    let counts = world
        .deliveries()
        .get_delivery(request)
        .await
        .unwrap()
        .into_inner();
    let count = |reason: v1::SuppressedReason| v1::SuppressedCount {
        reason: reason.into(),
        count: 1,
    };
    assert_eq!(counts.channels[0].suppressed_counts, []);
    assert_eq!(
        counts.channels[1].suppressed_counts,
        [
            count(v1::SuppressedReason::NoDevice),
            count(v1::SuppressedReason::Muted)
        ]
    );

    let explain = async |user: &str| {
        let request = v1::ExplainDeliveryRequest {
            post_id,
            user_id: user.into(),
        };
        let response = world.deliveries().explain_delivery(request).await.unwrap();
        response.into_inner()
    };
    for (index, name) in names.into_iter().enumerate() {
        let explained = explain(name).await;
        assert!(explained.planned);
        let expires_at = explained.push_expire_time.unwrap();
        assert_eq!(
            expires_at == herald_proto::timestamp_to_proto(extended_to),
            name == "waiting",
            "{name}: {expires_at}"
        );
        assert_eq!(explained.author_id, "107");
        let [timeline, push] = &explained.channels[..] else {
            panic!("{explained:?}")
        };
        let timeline = timeline.recipient.as_ref().unwrap();
        assert_eq!(timeline.state(), v1::DeliveryState::Pending);
        assert_eq!(push.recipient.as_ref(), Some(&listed[index]));
    }
    world.key("stranger").await;
    for stranger in ["stranger", "unknown"] {
        assert_eq!(explain(stranger).await.channels, []);
    }
    let unknown_post = v1::ExplainDeliveryRequest {
        post_id: 99,
        user_id: "muted".into(),
    };
    let status = world
        .deliveries()
        .explain_delivery(unknown_post)
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "POST_NOT_FOUND")
    );
    let status = world
        .deliveries()
        .explain_delivery(v1::ExplainDeliveryRequest::default())
        .await;
    assert_eq!(fields(&status.unwrap_err()), ["post_id", "user_id"]);
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lag_names_every_stream_and_consumer() {
    let world = World::start().await;
    let lag = async || {
        world
            .lags()
            .get_lag(v1::GetLagRequest {})
            .await
            .unwrap()
            .into_inner()
            .streams
    };
    let archive = |streams: &[v1::StreamLag]| {
        let posts = streams.iter().find(|s| s.stream == "POSTS").unwrap();
        posts
            .consumers
            .iter()
            .find(|c| c.consumer == "archive")
            .unwrap()
            .clone()
    };
    let first = lag().await;
    assert_eq!(first.len(), world.topology.streams.len());
    let consumers: usize = first.iter().map(|s| s.consumers.len()).sum();
    assert_eq!(consumers, world.topology.consumers.len());
    assert!(archive(&first).acknowledged_per_second.abs() < f64::EPSILON);

    let watch = v1::WatchLagRequest {
        interval: Some(prost_types::Duration {
            seconds: 0,
            nanos: 200_000_000,
        }),
    };
    let mut readings = world.lags().watch_lag(watch).await.unwrap().into_inner();
    let first = readings.message().await.unwrap().unwrap();
    assert!(archive(&first.streams).acknowledged_per_second.abs() < f64::EPSILON);
    for _ in 0..5 {
        world.post("107", "hi").await;
    }
    wait_until("a reading shows a rate above 0", async || {
        let reading = readings.message().await.unwrap().unwrap();
        archive(&reading.streams).acknowledged_per_second > 0.0
    })
    .await;
    wait_until("nothing is pending", async || {
        let archive = archive(&lag().await);
        archive.pending_count + archive.ack_pending_count == 0
    })
    .await;
    // The test runs no fan-out service.
    let posts = lag().await.into_iter().find(|s| s.stream == "POSTS").unwrap();
    assert_eq!((posts.message_count, posts.last_sequence), (5, 5));
    let fanout = posts
        .consumers
        .iter()
        .find(|c| c.consumer == "fanout-normal")
        .unwrap();
    assert_eq!(fanout.pending_count, 5);
    assert!(fanout.oldest_age_seconds > 0.0);

    let bad = v1::WatchLagRequest {
        interval: Some(prost_types::Duration {
            seconds: 61,
            nanos: 0,
        }),
    };
    assert_eq!(
        fields(&world.lags().watch_lag(bad).await.unwrap_err()),
        ["interval"]
    );
    world.stop().await.unwrap();
}
