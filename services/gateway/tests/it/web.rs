//! Calls of web pages: gRPC-Web, CORS, and origins that are not allowed.

use bytes::{BufMut as _, Bytes, BytesMut};
use herald_gateway::Config;
use herald_proto::v1;
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Code;

use crate::harness::{Setup, World, reason, submit, with_timeout};

const PAGE: &str = "https://app.example.org";

async fn world(origins: &[&str]) -> World {
    let config = Config {
        cors_origins: origins.iter().map(ToString::to_string).collect(),
        ..Setup::default().config
    };
    World::start_with(Setup {
        config,
        ..Setup::default()
    })
    .await
}

/// Sends a request over HTTP/1.1 and returns the response, the head in lower case.
async fn exchange(address: &str, head: &str, body: &[u8]) -> (String, Vec<u8>) {
    let mut connection = TcpStream::connect(address).await.unwrap();
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    // A server may close the connection of a request that it doesn't read.
    let _ = with_timeout("the response", connection.read_to_end(&mut answer)).await;
    let split = answer.windows(4).position(|w| w == b"\r\n\r\n");
    let split = split.unwrap_or(answer.len());
    let head = String::from_utf8_lossy(&answer[..split]).to_ascii_lowercase();
    (head, answer[(split + 4).min(answer.len())..].to_vec())
}

/// The question of a browser before the call of a page.
async fn preflight(address: &str, path: &str, origin: &str) -> String {
    let head = format!(
        "OPTIONS {path} HTTP/1.1\r\nhost: {address}\r\norigin: {origin}\r\naccess-control-request-method: POST\r\n\
         access-control-request-headers: content-type,x-grpc-web\r\nconnection: close\r\n\r\n"
    );
    exchange(address, &head, b"").await.0
}

fn frame(message: &[u8]) -> BytesMut {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame
}

/// Sends a call of a page; returns the head and the body of the response.
async fn call(
    address: &str,
    path: &str,
    origin: &str,
    content_type: &str,
    message: &[u8],
) -> (String, Vec<u8>) {
    let frame = frame(message);
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: {content_type}\r\nx-grpc-web: 1\r\norigin: {origin}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        frame.len()
    );
    exchange(address, &head, &frame).await
}

/// Sends a gRPC-Web call; returns the head and the frames (flag, bytes) of the response.
async fn grpc_web(world: &World, path: &str, message: &[u8]) -> (String, Vec<(u8, Bytes)>) {
    let (head, body) = call(&world.address, path, PAGE, "application/grpc-web+proto", message).await;
    let mut body = &body[..];
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
async fn a_page_of_an_allowed_origin_can_call_over_grpc_web() {
    let world = world(&[PAGE]).await;
    let request = submit("107", "from a browser").encode_to_vec();
    let (head, frames) = grpc_web(&world, "/herald.v1.PostService/SubmitPost", &request).await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(
        head.contains(&format!("access-control-allow-origin: {PAGE}")),
        "{head}"
    );
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

    let answer = preflight(&world.address, "/herald.v1.PostService/SubmitPost", PAGE).await;
    assert!(answer.starts_with("http/1.1 200"), "{answer}");
    assert!(
        answer.contains("access-control-allow-headers: content-type,x-grpc-web"),
        "{answer}"
    );

    // Another origin is refused, with or without asking.
    let other = "https://evil.example.org";
    let answer = preflight(&world.address, "/herald.v1.PostService/SubmitPost", other).await;
    assert!(answer.starts_with("http/1.1 403"), "{answer}");
    let message = submit("107", "not accepted").encode_to_vec();
    let path = "/herald.v1.PostService/SubmitPost";
    let (head, _) = call(
        &world.address,
        path,
        other,
        "application/grpc-web+proto",
        &message,
    )
    .await;
    assert!(head.starts_with("http/1.1 403"), "{head}");
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn web_pages_may_call_nothing_by_default() {
    let world = World::start().await;
    for path in [
        "/herald.v1.AnalyticsService/GetTotals",
        "/herald.v1.DeliveryService/GetDelivery",
        "/herald.v1.DeviceService/RegisterDevice",
        "/herald.v1.GraphService/Follow",
        "/herald.v1.PostService/SubmitPost",
        "/herald.v1.PreferenceService/UpdatePreferences",
        "/herald.v1.TimelineService/ListTimeline",
        "/herald.v1.DeadLetterService/DiscardDeadLetters",
        "/herald.v1.MeshService/GetLag",
        "/grpc.health.v1.Health/Check",
    ] {
        // A page, a page of a file, and a page whose name leads to this server.
        let own = format!("http://{}", world.address);
        for origin in [PAGE, "null", &own] {
            let answer = preflight(&world.address, path, origin).await;
            assert!(answer.starts_with("http/1.1 403"), "{path} {origin}: {answer}");
            assert!(
                !answer.contains("access-control-allow"),
                "{path} {origin}: {answer}"
            );
        }
    }
    // What a browser sends without asking takes no effect.
    let message = submit("107", "not accepted").encode_to_vec();
    for content_type in ["application/grpc-web+proto", "application/grpc", "text/plain"] {
        let path = "/herald.v1.PostService/SubmitPost";
        let (head, body) = call(&world.address, path, PAGE, content_type, &message).await;
        assert!(head.starts_with("http/1.1 403"), "{content_type}: {head}");
        assert!(head.contains("grpc-status: 7"), "{content_type}: {head}");
        assert_eq!(String::from_utf8_lossy(&body), "", "{content_type}");
    }
    assert_eq!(world.post("107", "the first one").await, 1);
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_calls_are_answered_to_no_origin() {
    let world = world(&["*"]).await;
    let paths = [
        "/herald.v1.DeadLetterService/DiscardDeadLetters",
        "/herald.v1.AuditService/RunAudit",
        "/herald.v1.MeshService/GetLag",
    ];
    for path in paths {
        // The operator port doesn't speak HTTP/1.1, which browsers speak without TLS.
        let answer = preflight(&world.operator_address, path, PAGE).await;
        assert!(!answer.contains("access-control-allow"), "{path}: {answer}");
        assert!(!answer.starts_with("http/1.1 2"), "{path}: {answer}");
        let (head, body) = call(
            &world.operator_address,
            path,
            PAGE,
            "application/grpc-web+proto",
            b"",
        )
        .await;
        assert!(!head.starts_with("http/1.1 2"), "{path}: {head}");
        assert!(
            !String::from_utf8_lossy(&body).contains("grpc-status:0"),
            "{path}"
        );
        // The public port allows every origin, and doesn't have them.
        let (head, _) = call(&world.address, path, PAGE, "application/grpc-web+proto", b"").await;
        assert!(head.contains("grpc-status: 12"), "{path}: {head}");
    }
    // Over HTTP/2, which browsers speak with TLS.
    let mut request = tonic::Request::new(v1::GetLagRequest {});
    request.metadata_mut().insert("origin", PAGE.parse().unwrap());
    let refused = world.lags().get_lag(request).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::PermissionDenied, "ORIGIN_NOT_ALLOWED")
    );
    world.lags().get_lag(v1::GetLagRequest {}).await.unwrap();
    world.stop().await.unwrap();
}
