//! Start, stop, crash and restart of a server.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use herald_local_nats::{Config, Error, Server, SyncInterval};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn connect(server: &Server) -> jetstream::Context {
    jetstream::new(async_nats::connect(server.client_url()).await.unwrap())
}

async fn make_stream(context: &jetstream::Context) -> stream::Stream {
    let config = stream::Config {
        name: "S".into(),
        subjects: vec!["s".into()],
        ..Default::default()
    };
    context.get_or_create_stream(config).await.unwrap()
}

async fn publish(context: &jetstream::Context, body: &'static str) -> u64 {
    context
        .publish("s", body.into())
        .await
        .unwrap()
        .await
        .unwrap()
        .sequence
}

async fn body(stream: &stream::Stream, sequence: u64) -> String {
    String::from_utf8(stream.get_raw_message(sequence).await.unwrap().payload.to_vec()).unwrap()
}

/// Reads a page of the monitoring API.
async fn monitor(server: &Server, path: &str) -> String {
    let mut connection = TcpStream::connect(("127.0.0.1", server.monitor_port()))
        .await
        .unwrap();
    connection
        .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut reply = String::new();
    connection.read_to_string(&mut reply).await.unwrap();
    reply
}

#[tokio::test]
async fn a_server_starts_on_a_free_port_and_is_ready() {
    let config = Config {
        name: Some("here".into()),
        max_payload_bytes: Some(2 << 20),
        ..Config::default()
    };
    let server = Server::start(config).await.unwrap();
    let client = async_nats::connect(server.client_url()).await.unwrap();
    let info = client.server_info();
    assert!(info.version.starts_with("2.15."), "{}", info.version);
    assert_eq!(info.version, server.version());
    assert_eq!((info.server_name.as_str(), info.max_payload), ("here", 2 << 20));
    assert!(monitor(&server, "/healthz").await.contains(r#""status":"ok""#));
    assert_eq!(
        server.monitor_url(),
        format!("http://127.0.0.1:{}", server.monitor_port())
    );
    assert!(server.log_tail().contains("Server is ready"));
}

#[tokio::test]
async fn limits_and_sync_interval_reach_the_server() {
    let config = Config {
        max_file_bytes: Some(64 << 20),
        max_memory_bytes: Some(1 << 20),
        sync_interval: SyncInterval::Always,
        extra: "max_connections: 7".into(),
        ..Config::default()
    };
    let server = Server::start(config).await.unwrap();
    let varz = monitor(&server, "/varz").await;
    for expected in [
        r#""max_storage": 67108864"#,
        r#""max_memory": 1048576"#,
        r#""sync_always": true"#,
    ] {
        assert!(varz.contains(expected), "{expected} in {varz}");
    }
    assert!(varz.contains(r#""max_connections": 7"#), "{varz}");
}

#[tokio::test]
async fn messages_survive_a_restart_on_the_same_port() {
    let mut server = Server::start(Config::default()).await.unwrap();
    let url = server.client_url();
    let context = connect(&server).await;
    make_stream(&context).await;
    assert_eq!(publish(&context, "before").await, 1);

    let pid = server.pid();
    server.restart().await.unwrap();
    assert_ne!(server.pid(), pid);
    assert_eq!(server.client_url(), url);

    // A new client, because this is not a test of reconnecting.
    let context = connect(&server).await;
    let stream = make_stream(&context).await;
    assert_eq!(body(&stream, 1).await, "before");
    assert_eq!(publish(&context, "after").await, 2);
}

#[tokio::test]
async fn messages_survive_a_kill() {
    let mut server = Server::start(Config::default()).await.unwrap();
    let context = connect(&server).await;
    make_stream(&context).await;
    publish(&context, "before").await;

    let exited = server.exited();
    let status = server.kill().await.unwrap();
    assert!(!status.success());
    assert_eq!(exited.await.unwrap(), status);

    server.restart().await.unwrap();
    assert_eq!(
        body(&make_stream(&connect(&server).await).await, 1).await,
        "before"
    );
}

#[tokio::test]
async fn the_next_server_in_a_directory_has_its_state() {
    let dir = TempDir::new().unwrap();
    let config = Config::in_dir(dir.path().join("new directory"));
    let mut server = Server::start(config.clone()).await.unwrap();
    let context = connect(&server).await;
    make_stream(&context).await;
    publish(&context, "kept").await;
    let status = server.stop().await.unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(server.stop().await.unwrap(), status);
    drop(server);

    let server = Server::start(config).await.unwrap();
    assert_eq!(body(&make_stream(&connect(&server).await).await, 1).await, "kept");
}

#[tokio::test]
async fn two_servers_are_independent() {
    let (one, two) = tokio::join!(Server::start(Config::default()), Server::start(Config::default()));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_ne!(one.client_url(), two.client_url());
    assert_ne!(one.monitor_url(), two.monitor_url());
    assert_ne!(one.dir(), two.dir());
    make_stream(&connect(&one).await).await;
    assert!(connect(&two).await.get_stream("S").await.is_err());
}

#[tokio::test]
async fn a_directory_in_use_is_refused() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(Config::in_dir(dir.path())).await.unwrap();
    let error = Server::start(Config::in_dir(dir.path())).await.unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    // The refused start does not affect the running server.
    connect(&server).await;
}

#[tokio::test]
async fn a_start_that_fails_shows_the_log() {
    let config = Config {
        extra: "no such option {".into(),
        ..Config::default()
    };
    let error = Server::start(config).await.unwrap_err();
    let Error::Exited { status, log } = &error else {
        panic!("{error}")
    };
    assert!(!status.success());
    assert!(log.contains("Parse error"), "{log}");
    assert!(error.to_string().contains(log));
}

#[tokio::test]
async fn a_start_timeout_names_the_failed_check() {
    let extra = "jetstream: disabled".into();
    let config = Config {
        extra,
        start_limit: Duration::from_millis(300),
        ..Config::default()
    };
    let error = Server::start(config).await.unwrap_err();
    assert!(
        matches!(&error, Error::NotReady { missing, .. } if missing.contains("JetStream")),
        "{error}"
    );
}

#[tokio::test]
async fn a_port_in_use_has_its_own_error() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config {
        port: taken.local_addr().unwrap().port(),
        ..Config::default()
    };
    let error = Server::start(config).await.unwrap_err();
    assert!(matches!(error, Error::PortTaken { .. }), "{error}");
}

#[tokio::test]
async fn a_restart_waits_until_its_port_is_free() {
    let mut server = Server::start(Config::default()).await.unwrap();
    server.stop().await.unwrap();
    let taken = TcpListener::bind(("127.0.0.1", server.port())).await.unwrap();
    let log = server.log_path().to_owned();
    let free_after_a_failure = async {
        while !std::fs::read_to_string(&log)
            .unwrap()
            .contains("address already in use")
        {
            tokio::task::yield_now().await;
        }
        drop(taken);
    };
    let (restarted, ()) = tokio::join!(server.restart(), free_after_a_failure);
    restarted.unwrap();
    connect(&server).await;
}

#[tokio::test]
async fn exited_resolves_when_the_server_is_killed() {
    let server = Server::start(Config::default()).await.unwrap();
    let exited = tokio::spawn(server.exited());
    assert!(!exited.is_finished());
    let pid = server.pid().to_string();
    let sent = std::process::Command::new("kill")
        .args(["-KILL", &pid])
        .status()
        .unwrap();
    assert!(sent.success());
    assert!(!exited.await.unwrap().unwrap().success());
}

#[tokio::test]
async fn dropping_a_server_kills_it_and_removes_its_temporary_directory() {
    let server = Server::start(Config::default()).await.unwrap();
    let (dir, exited) = (server.dir().to_owned(), server.exited());
    drop(server);
    assert!(!dir.exists());
    assert!(!exited.await.unwrap().success());
}
