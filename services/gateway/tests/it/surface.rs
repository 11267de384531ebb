//! The ports: reflection, health, forwarding.

use std::collections::BTreeSet;

use futures::stream;
use herald_proto::v1;
use prost::Message as _;
use prost_types::FileDescriptorProto;
use tonic::{Code, Request, Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{v1 as reflection, v1alpha as reflection_alpha};
use tonic_types::StatusExt as _;

use crate::harness::{Setup, World, fields, reason, submit, wait_until};

/// Services of the public port.
const SERVICES: [&str; 7] = [
    "herald.v1.AnalyticsService",
    "herald.v1.DeliveryService",
    "herald.v1.DeviceService",
    "herald.v1.GraphService",
    "herald.v1.PostService",
    "herald.v1.PreferenceService",
    "herald.v1.TimelineService",
];
/// Services of the operator port.
const OPERATOR_SERVICES: [&str; 5] = [
    "herald.v1.AuditService",
    "herald.v1.DeadLetterService",
    "herald.v1.KeyService",
    "herald.v1.MeshService",
    "herald.v1.UserDataService",
];

/// The services that reflection lists, in one of its versions.
macro_rules! listed {
    ($reflection:ident, $channel:expr) => {{
        use $reflection::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let request = ServerReflectionRequest {
            message_request: Some(MessageRequest::ListServices(String::new())),
            ..Default::default()
        };
        let mut client = ServerReflectionClient::new($channel.clone());
        let answers = client.server_reflection_info(stream::iter([request])).await;
        let answer = answers.unwrap().into_inner().message().await.unwrap().unwrap();
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!()
        };
        list.service
            .into_iter()
            .map(|s| s.name)
            .collect::<BTreeSet<String>>()
    }};
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_the_services_of_each_port_in_both_versions() {
    let world = World::start().await;
    let expected = |services: &[&str], own: &str| -> BTreeSet<String> {
        let names = services.iter().chain(&["grpc.health.v1.Health"]);
        names.map(ToString::to_string).chain([own.to_owned()]).collect()
    };
    for (channel, services) in [
        (&world.channel, &SERVICES[..]),
        (&world.operators, &OPERATOR_SERVICES),
    ] {
        assert_eq!(
            listed!(reflection, channel),
            expected(services, "grpc.reflection.v1.ServerReflection")
        );
        assert_eq!(
            listed!(reflection_alpha, channel),
            expected(services, "grpc.reflection.v1alpha.ServerReflection")
        );
    }
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_can_be_switched_off_at_both_ports() {
    let config = herald_gateway::Config {
        reflection: false,
        ..Setup::default().config
    };
    let world = World::start_with(Setup {
        config,
        ..Setup::default()
    })
    .await;
    for channel in [&world.channel, &world.operators] {
        let request = reflection::ServerReflectionRequest::default();
        let mut client = reflection::server_reflection_client::ServerReflectionClient::new(channel.clone());
        let refused = client.server_reflection_info(stream::iter([request])).await;
        assert_eq!(refused.unwrap_err().code(), Code::Unimplemented);
        let request = reflection_alpha::ServerReflectionRequest::default();
        let mut client =
            reflection_alpha::server_reflection_client::ServerReflectionClient::new(channel.clone());
        let refused = client.server_reflection_info(stream::iter([request])).await;
        assert_eq!(refused.unwrap_err().code(), Code::Unimplemented);
    }
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_serves_the_types_of_error_details() {
    use reflection::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let world = World::start().await;
    let mut client = ServerReflectionClient::new(world.channel.clone());
    for symbol in [
        "google.rpc.BadRequest",
        "google.rpc.ErrorInfo",
        "google.rpc.QuotaFailure",
        "google.rpc.RetryInfo",
        "google.rpc.Status",
    ] {
        let request = ServerReflectionRequest {
            message_request: Some(MessageRequest::FileContainingSymbol(symbol.into())),
            ..Default::default()
        };
        let answers = client.server_reflection_info(stream::iter([request])).await;
        let answer = answers.unwrap().into_inner().message().await.unwrap().unwrap();
        let Some(MessageResponse::FileDescriptorResponse(files)) = answer.message_response else {
            panic!("{symbol}: {answer:?}")
        };
        let file = FileDescriptorProto::decode(&*files.file_descriptor_proto[0]).unwrap();
        let messages = file.message_type.iter();
        let mut names = messages.map(|message| format!("{}.{}", file.package(), message.name()));
        assert!(
            names.any(|name| name == symbol),
            "{symbol} is not in {}",
            file.name()
        );
    }
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_is_an_invalid_argument_that_names_the_limit() {
    let world = World::start().await;
    let check = |status: &Status, limit: &str| {
        assert_eq!(
            (status.code(), reason(status).as_str()),
            (Code::InvalidArgument, "MESSAGE_TOO_LARGE"),
            "{status:?}"
        );
        assert!(status.message().contains(limit), "{status:?}");
    };
    let own = format!("limit is: {} bytes", 1 << 20);
    let large = submit("107", &"x".repeat(1 << 20));
    // A call, a stream of requests, a stream of responses, and a forwarded stream of requests.
    let refused = world.posts().submit_post(large.clone()).await;
    check(&refused.unwrap_err(), &own);
    let requests = [submit("107", "small"), large].map(|post| v1::SubmitPostsRequest { post: Some(post) });
    let refused = world.posts().submit_posts(stream::iter(requests)).await;
    check(&refused.unwrap_err(), &own);
    let watch = v1::WatchTimelineRequest {
        user_id: "x".repeat(1 << 20),
        ..Default::default()
    };
    check(
        &world.timelines().watch_timeline(watch).await.err().unwrap(),
        &own,
    );
    let follow = v1::Follow {
        follower_id: "x".repeat(4 << 20),
        ..Default::default()
    };
    let batch = v1::ImportFollowsRequest {
        follows: vec![follow],
    };
    let refused = world.graph_client().import_follows(stream::iter([batch])).await;
    check(&refused.unwrap_err(), &format!("limit is: {} bytes", 4 << 20));
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn health_reflects_the_broker_and_the_forwarded_services() {
    let mut world = World::start().await;
    let (public, operators) = (world.channel.clone(), world.operators.clone());
    let status_at = async |channel: &Channel, service: &str| {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        let answer = HealthClient::new(channel.clone()).check(request).await;
        answer.map(|answer| answer.into_inner().status())
    };
    let status = async |service: &str| status_at(&public, service).await.unwrap();
    for service in SERVICES
        .into_iter()
        .filter(|s| !s.contains("Analytics"))
        .chain([""])
    {
        wait_until(service, async || status(service).await == ServingStatus::Serving).await;
    }
    for (service, expected) in [
        ("", ServingStatus::Serving),
        ("herald.v1.MeshService", ServingStatus::Serving),
        // Nothing listens on the deadletter port.
        ("herald.v1.AuditService", ServingStatus::NotServing),
        ("herald.v1.DeadLetterService", ServingStatus::NotServing),
        ("herald.v1.UserDataService", ServingStatus::NotServing),
    ] {
        wait_until(service, async || {
            status_at(&operators, service).await.unwrap() == expected
        })
        .await;
    }
    // A port knows the services that it serves.
    for (channel, service) in [
        (&public, "herald.v1.MeshService"),
        (&operators, "herald.v1.PostService"),
    ] {
        let unknown = status_at(channel, service).await.unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound, "{service}");
    }
    // Nothing listens on the analytics port.
    wait_until("analytics is NOT_SERVING", async || {
        status("herald.v1.AnalyticsService").await == ServingStatus::NotServing
    })
    .await;
    world.server.stop().await.unwrap();
    wait_until("the gateway is NOT_SERVING", async || {
        status("").await == ServingStatus::NotServing
    })
    .await;
    world.server.restart().await.unwrap();
    wait_until("the gateway is SERVING again", async || {
        status("herald.v1.PostService").await == ServingStatus::Serving
    })
    .await;
    world.post("107", "after the restart").await;
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_to_other_services_are_forwarded_unchanged() {
    let world = World::start().await;
    let mut client = world.graph_client();
    let follow = v1::Follow {
        follower_id: "1".into(),
        author_id: "107".into(),
        notify: Some(true),
    };
    let mut request = Request::new(v1::FollowRequest {
        follow: Some(follow.clone()),
    });
    request.metadata_mut().insert("x-test", "passed".parse().unwrap());
    let answer = client.follow(request).await.unwrap();
    assert_eq!(answer.metadata().get("x-answer").unwrap(), "here");
    assert!(answer.into_inner().changed);
    assert_eq!(world.graph.state.lock().header.as_deref(), Some("passed"));

    let status = client
        .follow(v1::FollowRequest { follow: None })
        .await
        .unwrap_err();
    assert_eq!(
        (status.message(), fields(&status)),
        ("no follow", vec!["follow".to_owned()])
    );

    let batch = v1::ImportFollowsRequest {
        follows: vec![follow; 1_000],
    };
    let imported = client
        .import_follows(stream::iter(vec![batch; 10]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(imported.imported_count, 10_000);

    let mut analytics = v1::analytics_service_client::AnalyticsServiceClient::new(world.channel.clone());
    let status = analytics
        .get_totals(v1::GetTotalsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unavailable, "SERVICE_UNAVAILABLE")
    );
    assert!(status.get_details_retry_info().is_some());

    world.graph_stop.cancel();
    wait_until("the graph service is unavailable", async || {
        client
            .count_followers(v1::CountFollowersRequest::default())
            .await
            .is_err_and(|s| s.code() == Code::Unavailable)
    })
    .await;
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_methods_are_unimplemented_and_those_of_the_mesh_refused() {
    let world = World::start().await;
    let mut client = tonic::client::Grpc::new(world.channel.clone());
    for path in [
        "/herald.v1.PostService/Nothing",
        "/herald.v1.GraphService/ExportFollowers",
        "/herald.mesh.v1.FollowerService/Nothing",
    ] {
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<v1::GetPostRequest, v1::GetPostResponse>::default();
        let request = Request::new(v1::GetPostRequest::default());
        let answer = client.unary(request, path.parse().unwrap(), codec).await;
        assert_eq!(answer.unwrap_err().code(), Code::Unimplemented, "{path}");
    }
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<v1::GetPostRequest, v1::GetPostResponse>::default();
    let request = Request::new(v1::GetPostRequest::default());
    let path = "/herald.mesh.v1.FollowerService/ExportFollowers";
    let refused = client
        .unary(request, path.parse().unwrap(), codec)
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::PermissionDenied, "METHOD_INTERNAL")
    );
    world.stop().await.unwrap();
}
