//! The two ports: which services each has, and what they share.

use herald_proto::v1;
use tonic::{Code, Request, Status, transport::Channel};

use crate::harness::{Setup, World, reason, wait_until};

/// Calls a method with an empty request.
async fn call(channel: &Channel, path: &str) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<v1::GetLagRequest, v1::GetLagResponse>::default();
    let answer = client
        .unary(Request::new(v1::GetLagRequest {}), path.parse().unwrap(), codec)
        .await;
    answer.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_service_is_served_at_one_port_and_the_other_one_says_so() {
    let world = World::start().await;
    let methods = [
        (&world.operators, &world.channel, "AuditService/RunAudit"),
        (
            &world.operators,
            &world.channel,
            "DeadLetterService/DiscardDeadLetters",
        ),
        (&world.operators, &world.channel, "MeshService/GetLag"),
        (&world.channel, &world.operators, "AnalyticsService/GetTotals"),
        (&world.channel, &world.operators, "DeliveryService/GetDelivery"),
        (&world.channel, &world.operators, "DeviceService/ListDevices"),
        (&world.channel, &world.operators, "GraphService/Follow"),
        (&world.channel, &world.operators, "PostService/SubmitPost"),
        (
            &world.channel,
            &world.operators,
            "PreferenceService/GetPreferences",
        ),
        (&world.channel, &world.operators, "TimelineService/ListTimeline"),
    ];
    for (right, wrong, method) in methods {
        let path = format!("/herald.v1.{method}");
        let refused = call(wrong, &path).await.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::Unimplemented, "WRONG_PORT"),
            "{method}"
        );
        // Without a request, or without the service behind it, but not UNIMPLEMENTED.
        if let Err(status) = call(right, &path).await {
            assert_ne!(status.code(), Code::Unimplemented, "{method}: {status:?}");
        }
    }
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ports_share_the_limits_of_calls_and_connections() {
    let config = herald_gateway::Config {
        response_streams_max: 2,
        ..Setup::default().config
    };
    let world = World::start_with(Setup {
        config,
        ..Setup::default()
    })
    .await;
    let watch = v1::WatchTimelineRequest {
        user_id: "1".into(),
        ..Default::default()
    };
    let _held = world.timelines().watch_timeline(watch).await.unwrap();
    // An address gets a half: the other stream is for others.
    let refused = world.lags().watch_lag(v1::WatchLagRequest::default()).await;
    assert_eq!(reason(&refused.unwrap_err()), "OVERLOADED");
    // Connections of both ports count, and there are two.
    let open = || world.metrics.connections.get();
    wait_until("both connections are open", async || open() == 2).await;
    world.stop().await.unwrap();
}
