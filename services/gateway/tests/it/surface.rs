//! The public port: reflection, health, gRPC-Web, forwarding.

use std::collections::BTreeSet;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::stream;
use herald_proto::v1;
use prost::Message as _;
use prost_types::FileDescriptorProto;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Code, Request, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{v1 as reflection, v1alpha as reflection_alpha};
use tonic_types::StatusExt as _;

use crate::harness::{World, fields, reason, submit, wait_until, with_timeout};

const SERVICES: [&str; 8] = [
    "herald.v1.AnalyticsService",
    "herald.v1.DeliveryService",
    "herald.v1.DeviceService",
    "herald.v1.GraphService",
    "herald.v1.MeshService",
    "herald.v1.PostService",
    "herald.v1.PreferenceService",
    "herald.v1.TimelineService",
];

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_every_service_in_both_versions() {
    let world = World::start().await;
    let expected = |names: BTreeSet<String>| {
        for service in SERVICES.into_iter().chain(["grpc.health.v1.Health"]) {
            assert!(names.contains(service), "{service} is not in {names:?}");
        }
        let internal = names.iter().find(|name| name.starts_with("herald.mesh."));
        assert_eq!(internal, None);
    };
    {
        use reflection::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let request = ServerReflectionRequest {
            message_request: Some(MessageRequest::ListServices(String::new())),
            ..Default::default()
        };
        let mut client = ServerReflectionClient::new(world.channel.clone());
        let answers = client
            .server_reflection_info(stream::iter([request]))
            .await
            .unwrap();
        let answer = answers.into_inner().message().await.unwrap().unwrap();
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!()
        };
        expected(list.service.into_iter().map(|s| s.name).collect());
    }
    {
        use reflection_alpha::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let request = ServerReflectionRequest {
            message_request: Some(MessageRequest::ListServices(String::new())),
            ..Default::default()
        };
        let mut client = ServerReflectionClient::new(world.channel.clone());
        let answers = client
            .server_reflection_info(stream::iter([request]))
            .await
            .unwrap();
        let answer = answers.into_inner().message().await.unwrap().unwrap();
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!()
        };
        expected(list.service.into_iter().map(|s| s.name).collect());
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
    let channel = world.channel.clone();
    let status = async |service: &str| {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        HealthClient::new(channel.clone())
            .check(request)
            .await
            .unwrap()
            .into_inner()
            .status()
    };
    for service in SERVICES
        .into_iter()
        .filter(|s| !s.contains("Analytics"))
        .chain([""])
    {
        wait_until(service, async || status(service).await == ServingStatus::Serving).await;
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

/// Sends a gRPC-Web call over HTTP/1.1; returns the head and the frames (flag, bytes) of the response.
async fn grpc_web(world: &World, path: &str, message: &[u8]) -> (String, Vec<(u8, Bytes)>) {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/grpc-web+proto\r\nx-grpc-web: 1\r\n\
         origin: https://app.example.org\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        world.address,
        frame.len()
    );
    let mut connection = TcpStream::connect(&world.address).await.unwrap();
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(&frame).await.unwrap();
    let mut answer = Vec::new();
    with_timeout("the response", connection.read_to_end(&mut answer))
        .await
        .unwrap();
    let split = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..split].to_vec())
        .unwrap()
        .to_ascii_lowercase();
    let mut body = &answer[split + 4..];
    let mut content = BytesMut::new();
    if head.contains("transfer-encoding: chunked") {
        loop {
            let line = body.windows(2).position(|w| w == b"\r\n").unwrap();
            let length = usize::from_str_radix(std::str::from_utf8(&body[..line]).unwrap(), 16).unwrap();
            if length == 0 {
                break;
            }
            content.put_slice(&body[line + 2..line + 2 + length]);
            body = &body[line + 2 + length + 2..];
        }
    } else {
        content.put_slice(body);
    }
    let mut frames = Vec::new();
    let mut content = content.freeze();
    while !content.is_empty() {
        let flag = content[0];
        let length = u32::from_be_bytes(content[1..5].try_into().unwrap()) as usize;
        frames.push((flag, content.slice(5..5 + length)));
        content = content.slice(5 + length..);
    }
    (head, frames)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_can_call_over_grpc_web() {
    let world = World::start().await;
    let request = submit("107", "from a browser").encode_to_vec();
    let (head, frames) = grpc_web(&world, "/herald.v1.PostService/SubmitPost", &request).await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(head.contains("access-control-allow-origin: *"), "{head}");
    assert_eq!(frames.len(), 2);
    assert_eq!(
        v1::SubmitPostResponse::decode(frames[0].1.clone())
            .unwrap()
            .post_id,
        1
    );
    assert_eq!(frames[1].0, 0x80);
    assert!(
        std::str::from_utf8(&frames[1].1)
            .unwrap()
            .contains("grpc-status:0")
    );

    // A refused call and a forwarded call.
    let (head, frames) = grpc_web(
        &world,
        "/herald.v1.PostService/SubmitPost",
        &submit("", "x").encode_to_vec(),
    )
    .await;
    let trailers = frames
        .iter()
        .map(|f| String::from_utf8_lossy(&f.1).into_owned())
        .collect::<String>();
    assert!(
        format!("{head}{trailers}")
            .replace(' ', "")
            .contains("grpc-status:3"),
        "{head} {trailers}"
    );
    let follow = v1::Follow {
        follower_id: "1".into(),
        author_id: "107".into(),
        notify: None,
    };
    let request = v1::FollowRequest { follow: Some(follow) }.encode_to_vec();
    let (_, frames) = grpc_web(&world, "/herald.v1.GraphService/Follow", &request).await;
    assert!(v1::FollowResponse::decode(frames[0].1.clone()).unwrap().changed);

    // The CORS preflight request.
    let mut connection = TcpStream::connect(&world.address).await.unwrap();
    let preflight = format!(
        "OPTIONS /herald.v1.PostService/SubmitPost HTTP/1.1\r\nhost: {}\r\norigin: https://app.example.org\r\n\
         access-control-request-method: POST\r\naccess-control-request-headers: content-type,x-grpc-web\r\n\
         connection: close\r\n\r\n",
        world.address
    );
    connection.write_all(preflight.as_bytes()).await.unwrap();
    let mut answer = String::new();
    with_timeout("the response", connection.read_to_string(&mut answer))
        .await
        .unwrap();
    let answer = answer.to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 200"), "{answer}");
    assert!(
        answer.contains("access-control-allow-headers: content-type,x-grpc-web"),
        "{answer}"
    );
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_methods_and_services_of_the_mesh_are_unimplemented() {
    let world = World::start().await;
    let mut client = tonic::client::Grpc::new(world.channel.clone());
    for path in [
        "/herald.v1.PostService/Nothing",
        "/herald.v1.GraphService/ExportFollowers",
        "/herald.mesh.v1.FollowerService/ExportFollowers",
    ] {
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<v1::GetPostRequest, v1::GetPostResponse>::default();
        let request = Request::new(v1::GetPostRequest::default());
        let answer = client.unary(request, path.parse().unwrap(), codec).await;
        assert_eq!(answer.unwrap_err().code(), Code::Unimplemented, "{path}");
    }
    world.stop().await.unwrap();
}
