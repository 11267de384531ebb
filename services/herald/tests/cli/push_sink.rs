//! `herald push-sink`

use std::time::{SystemTime, UNIX_EPOCH};

use herald_proto::v1::{RegisterDeviceRequest, UnregisterDeviceRequest, register_device_request::Address};
use serde_json::Value;
use standardwebhooks::Webhook;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::Status;

use crate::{
    run::{StreamingCommand, herald},
    server::Server,
};

/// Sends a webhook as Herald does, signed with this secret, and returns the HTTP status.
async fn send(address: &str, user: &str, secret: &str) -> String {
    let accepted_time = jiff::Timestamp::now();
    let body = format!(
        "{{\"type\":\"post.created\",\"data\":{{\"post_id\":17,\"author_id\":\"107\",\"recipient_id\":\"{user}\",\
         \"text\":\"hi\",\"accepted_time\":\"{accepted_time}\"}}}}"
    );
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
    let signature = Webhook::new(secret)
        .unwrap()
        .sign("m17", now, body.as_bytes())
        .unwrap();
    let request = format!(
        "POST /webhook/{user} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\nwebhook-id: m17\r\n\
         webhook-timestamp: {now}\r\nwebhook-signature: {signature}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split(' ').nth(1).unwrap().to_owned()
}

fn address(listening: &Value) -> String {
    assert_eq!(listening["event"], "listening");
    listening["address"].as_str().unwrap().to_owned()
}

fn secrets(server: &Server) -> Vec<(String, String)> {
    let requests = server.calls::<RegisterDeviceRequest>().into_iter();
    requests
        .map(|request| match request.address {
            Some(Address::Webhook(hook)) => (request.user_id, hook.secret),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[tokio::test]
async fn pushes_are_verified_and_counted() {
    let server = Server::start().await;
    let arguments = [
        "push-sink",
        "--listen",
        "127.0.0.1:0",
        "--register",
        "5",
        "6",
        "-o",
        "json",
    ];
    let mut sink = StreamingCommand::start(&server.url, &arguments);
    let address = address(&sink.json().await);
    let registered = secrets(&server);
    assert_eq!(registered.len(), 2);
    let secret = registered[0].1.clone();

    assert_eq!(send(&address, "5", &secret).await, "204");
    let push = sink.json().await;
    assert_eq!(
        (&push["event"], &push["recipient_id"]),
        (&"push".into(), &"5".into())
    );
    assert!(push["latency_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(send(&address, "5", &secret).await, "204");
    assert_eq!(sink.json().await["duplicate"], true);
    assert_eq!(
        send(
            &address,
            "6",
            "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
        )
        .await,
        "401"
    );

    sink.interrupt().await;
    let summary = sink.json().await;
    assert_eq!(summary["event"], "summary");
    for (name, expected) in [("received", 2), ("duplicates", 1), ("rejected", 1), ("failed", 0)] {
        assert_eq!(summary[name], expected, "{name}");
    }
    assert!(summary["latency_ms"]["p99"].as_f64().unwrap() > 0.0);
    assert_eq!(sink.end().await, 0);
    assert_eq!(server.calls::<UnregisterDeviceRequest>().len(), 2);
}

#[tokio::test]
async fn the_first_pushes_fail_and_the_sink_stops_after_a_count() {
    let server = Server::start().await;
    let users = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(users.path(), "# users\n5\n\n").unwrap();
    let file = users.path().to_str().unwrap();
    let arguments = [
        "push-sink",
        "--listen",
        "127.0.0.1:0",
        "--register-from",
        file,
        "--fail-first",
        "2",
        "--fail-status",
        "429",
        "--count",
        "1",
        "--quiet",
        "--keep-devices",
        "-o",
        "json",
    ];
    let mut sink = StreamingCommand::start(&server.url, &arguments);
    let address = address(&sink.json().await);
    let secret = secrets(&server)[0].1.clone();
    for expected in ["429", "429", "204"] {
        assert_eq!(send(&address, "5", &secret).await, expected);
    }
    let summary = sink.json().await;
    assert_eq!((&summary["received"], &summary["failed"]), (&1.into(), &2.into()));
    assert_eq!(sink.end().await, 0);
    assert_eq!(server.calls::<UnregisterDeviceRequest>(), []);
}

#[tokio::test]
async fn each_push_is_a_line_with_its_post_recipient_and_latency() {
    let server = Server::start().await;
    let arguments = ["push-sink", "--listen", "127.0.0.1:0", "--register", "5"];
    let mut sink = StreamingCommand::start(&server.url, &arguments);
    let listening = sink.line().await;
    let address = listening
        .strip_prefix("listening on ")
        .and_then(|rest| rest.split(',').next())
        .unwrap()
        .to_owned();
    let secret = secrets(&server)[0].1.clone();
    assert_eq!(send(&address, "5", &secret).await, "204");
    let push = loop {
        let line = sink.line().await;
        if line.starts_with("push of ") {
            break line;
        }
    };
    assert!(
        push.starts_with("push of post 17 to 5 after ") && push.ends_with(" ms, by 107: hi"),
        "{push}"
    );
    sink.interrupt().await;
    assert_eq!(sink.end().await, 0);
    assert_eq!(server.calls::<UnregisterDeviceRequest>().len(), 1);
}

#[tokio::test]
async fn devices_are_removed_when_another_registration_fails() {
    let server = Server::start().await;
    server.fail([Status::unavailable("the store is not available")]);
    let arguments = [
        "push-sink",
        "--listen",
        "127.0.0.1:0",
        "--register",
        "5",
        "6",
        "7",
    ];
    let done = herald(&server.url, &arguments).await;
    assert_eq!(done.code, 3, "{done:?}");
    assert_eq!(server.calls::<RegisterDeviceRequest>().len(), 3);
    assert_eq!(server.calls::<UnregisterDeviceRequest>().len(), 2);
}

#[tokio::test]
async fn devices_that_can_not_be_removed_are_named() {
    let server = Server::start().await;
    let arguments = [
        "push-sink",
        "--listen",
        "127.0.0.1:0",
        "--register",
        "5",
        "--count",
        "1",
        "-o",
        "json",
    ];
    let mut sink = StreamingCommand::start(&server.url, &arguments);
    let address = address(&sink.json().await);
    let secret = secrets(&server)[0].1.clone();
    server.fail([Status::unavailable("the store is not available")]);
    assert_eq!(send(&address, "5", &secret).await, "204");
    assert_eq!(sink.json().await["event"], "push");
    assert_eq!(sink.json().await["event"], "summary");
    assert_eq!(sink.end().await, 3);
}

#[tokio::test]
async fn a_port_in_use_is_told_with_the_flag_that_changes_it() {
    let server = Server::start().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let done = herald(&server.url, &["push-sink", "--listen", &address]).await;
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("--listen"), "{done:?}");
}
