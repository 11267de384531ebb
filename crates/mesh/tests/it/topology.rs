use std::process::Stdio;

use async_nats::jetstream::stream;
use herald_local_nats::{Binary, Locate};
use herald_mesh::{
    Config, ConsumeOptions, Difference, ErrorKind, Mesh, Subject, Topology, TopologyConfig, TopologyMode,
    streams,
};
use herald_model::Lane;
use herald_proto::mesh_v1::PostCreated;
use tokio::process::Command;

use crate::harness::{CONSUMER, Fixture, ScriptedHandler, post, until};

#[tokio::test]
async fn ensure_is_idempotent_and_concurrent() {
    let fixture = Fixture::start().await;
    let before = fixture.mesh.lag(&fixture.topology).await.unwrap();
    let other = Mesh::connect(&Config::at(fixture.server.client_url()))
        .await
        .unwrap();
    let (first, second) = tokio::join!(
        fixture.mesh.ensure(&fixture.topology),
        other.ensure(&fixture.topology)
    );
    first.unwrap();
    second.unwrap();
    assert_eq!(fixture.mesh.lag(&fixture.topology).await.unwrap(), before);
    assert_eq!(
        before.iter().map(|stream| stream.consumers.len()).sum::<usize>(),
        fixture.topology.consumers.len()
    );
}

/// With the policy discard new, a stream that holds more than its new limit keeps its messages.
#[tokio::test]
async fn a_limit_below_what_a_stream_holds_loses_nothing() {
    let fixture = Fixture::start().await;
    let message = PostCreated {
        text: "x".repeat(64 << 10),
        ..PostCreated::default()
    };
    for _ in 0..32 {
        let subject = Subject::PostCreated(Lane::Normal);
        fixture.mesh.publish(subject, None, &message).await.unwrap();
    }
    let state = async || {
        let stream = fixture.jetstream().await.get_stream(streams::POSTS).await;
        stream.unwrap().cached_info().state.clone()
    };
    let before = state().await;
    assert_eq!(before.messages, 32);
    let mut lower = TopologyConfig::default();
    lower.posts.bytes_max = 1 << 20;
    fixture
        .mesh
        .ensure(&Topology::new(&lower).unwrap())
        .await
        .unwrap();
    let after = state().await;
    assert_eq!((after.messages, after.bytes), (before.messages, before.bytes));
    let subject = Subject::PostCreated(Lane::Normal);
    let refused = fixture.mesh.publish(subject, None, &message).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Full, "{refused}");
}

#[tokio::test]
async fn several_processes_can_start_on_an_empty_server() {
    let fixture = Fixture::start().await;
    let jetstream = fixture.jetstream().await;
    for stream in &fixture.topology.streams {
        jetstream.delete_stream(&stream.name).await.unwrap();
    }
    let ensured = (0..8).map(|_| fixture.mesh.ensure(&fixture.topology));
    futures::future::try_join_all(ensured).await.unwrap();
}

#[tokio::test]
async fn a_changed_configuration_updates_only_its_own_fields() {
    let fixture = Fixture::start().await;
    let jetstream = fixture.jetstream().await;
    let mut config = jetstream
        .get_stream(streams::PUSH)
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    config.description = Some("mine".into());
    jetstream.update_stream(&config).await.unwrap();

    let mut changed = TopologyConfig::default();
    changed.consumers.push.ack_wait_seconds = 7;
    changed.push.bytes_max /= 2;
    fixture
        .mesh
        .ensure(&Topology::new(&changed).unwrap())
        .await
        .unwrap();

    let push = jetstream.get_stream(streams::PUSH).await.unwrap();
    assert_eq!(
        push.cached_info().config.max_bytes.unsigned_abs(),
        changed.push.bytes_max
    );
    assert_eq!(push.cached_info().config.description.as_deref(), Some("mine"));
    assert_eq!(
        push.consumer_info("push-low")
            .await
            .unwrap()
            .config
            .ack_wait
            .as_secs(),
        7
    );
}

#[tokio::test]
async fn a_refused_stream_update_is_a_conflict_that_names_the_field() {
    let fixture = Fixture::start().await;
    let jetstream = fixture.jetstream().await;
    jetstream.delete_stream(streams::PUSH).await.unwrap();
    let memory = stream::Config {
        name: streams::PUSH.into(),
        subjects: vec!["push.v1.deliver.*".into()],
        storage: stream::StorageType::Memory,
        ..stream::Config::default()
    };
    jetstream.create_stream(memory).await.unwrap();
    let error = fixture.mesh.ensure(&fixture.topology).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(
        error.to_string().contains("stream PUSH") && error.to_string().contains("storage"),
        "{error}"
    );

    jetstream.delete_stream(streams::PUSH).await.unwrap();
    let other = stream::Config {
        name: "OTHER".into(),
        subjects: vec!["push.>".into()],
        ..stream::Config::default()
    };
    jetstream.create_stream(other).await.unwrap();
    let error = fixture.mesh.ensure(&fixture.topology).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(
        error.to_string().contains("stream PUSH") && error.to_string().contains("push.v1.deliver"),
        "{error}"
    );
}

#[tokio::test]
async fn a_refused_consumer_update_is_a_conflict_that_names_the_field() {
    let fixture = Fixture::start().await;
    let jetstream = fixture.jetstream().await;
    let stream = jetstream.get_stream(streams::POSTS).await.unwrap();
    stream.delete_consumer("archive").await.unwrap();
    let other = async_nats::jetstream::consumer::pull::Config {
        durable_name: Some("archive".into()),
        ack_policy: async_nats::jetstream::consumer::AckPolicy::None,
        ..Default::default()
    };
    stream.create_consumer(other).await.unwrap();
    let error = fixture.mesh.ensure(&fixture.topology).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(
        error.to_string().contains("consumer archive of stream POSTS"),
        "{error}"
    );
    assert!(error.to_string().contains("ack_policy"), "{error}");
}

#[tokio::test]
async fn streams_larger_than_the_servers_storage_are_full() {
    let fixture = Fixture::start_with(|config| config.posts.bytes_max = 1 << 20).await;
    let mut config = TopologyConfig::default();
    config.posts.bytes_max = 1 << 60;
    let error = fixture
        .mesh
        .ensure(&Topology::new(&config).unwrap())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    assert!(error.to_string().contains("stream POSTS"), "{error}");
}

#[tokio::test]
async fn an_unreachable_server_is_unavailable() {
    let mut fixture = Fixture::start().await;
    let config = Config::at(fixture.server.client_url());
    fixture.server.stop().await.unwrap();
    assert_eq!(
        Mesh::connect(&config).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(
        Mesh::connect(&Config::at("not a url")).await.unwrap_err().kind(),
        ErrorKind::Invalid
    );
}

#[tokio::test]
async fn differences_are_listed_and_nothing_is_changed() {
    let fixture = Fixture::start().await;
    let mesh = &fixture.mesh;
    assert_eq!(mesh.verify(&fixture.topology).await.unwrap(), []);
    let jetstream = fixture.jetstream().await;
    jetstream.delete_stream(streams::SLICES).await.unwrap();
    let push = jetstream.get_stream(streams::PUSH).await.unwrap();
    push.delete_consumer("push-low").await.unwrap();
    let mut changed = TopologyConfig::default();
    changed.consumers = changed
        .consumers
        .each(|policy| policy.retry = fixture.consumer().retry);
    changed.posts.age_seconds_max += 60;
    changed.consumers.archive.ack_wait_seconds = 7;
    let wanted = Topology::new(&changed).unwrap();
    let expected = [
        "stream POSTS: max_age is 604800s, must be 604860s",
        // Its consumers are missing too, which is no news.
        "stream SLICES does not exist",
        "consumer archive of stream POSTS: ack_wait is 5s, must be 7s",
        "consumer push-low of stream PUSH does not exist",
    ];
    for _ in 0..2 {
        let found = mesh.verify(&wanted).await.unwrap();
        let texts: Vec<_> = found.iter().map(Difference::to_string).collect();
        assert_eq!(texts, expected);
        let missing = found.iter().filter(|difference| difference.is_missing());
        assert_eq!(missing.count(), 2);
    }
    mesh.ensure(&wanted).await.unwrap();
    assert_eq!(mesh.verify(&wanted).await.unwrap(), []);
}

#[tokio::test]
async fn a_worker_that_may_not_create_its_consumer_waits_for_it() {
    let fixture = Fixture::start().await;
    let config = Config {
        topology: TopologyMode::Verify,
        ..Config::at(fixture.server.client_url())
    };
    let waiting = Fixture {
        mesh: Mesh::connect(&config).await.unwrap(),
        topology: fixture.topology.clone(),
        server: fixture.server,
    };
    let (handler, mut deliveries) = ScriptedHandler::acks();
    let worker = waiting.spawn_worker(handler, ConsumeOptions::default());
    waiting.publish([1]).await;
    assert_eq!(post(&deliveries.next().await), 1);

    let jetstream = waiting.jetstream().await;
    let stream = jetstream.get_stream(streams::TIMELINE).await.unwrap();
    stream.delete_consumer(CONSUMER).await.unwrap();
    waiting.publish([2]).await;
    // The worker looks it up when its pull requests end, and again and again; each time the server answers an error.
    let failed_lookups = async || jetstream.query_account().await.unwrap().requests.errors;
    let before = failed_lookups().await;
    until("the worker has looked for its consumer", async || {
        failed_lookups().await >= before + 2
    })
    .await;
    let missing = waiting.mesh.verify(&waiting.topology).await.unwrap();
    assert_eq!(missing.len(), 1, "{missing:?}");
    assert_eq!(missing[0].consumer.as_deref(), Some(CONSUMER));

    fixture.mesh.ensure(&waiting.topology).await.unwrap();
    // A new consumer starts at the stream's first message.
    deliveries.posts([1, 2]).await;
    worker.stop().await;
}

#[tokio::test]
async fn streams_are_made_once_the_servers_of_a_cluster_have_joined() {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listeners: Vec<_> = (0..6).map(|_| free()).collect();
    let addresses: Vec<_> = listeners
        .iter()
        .map(|listener| listener.local_addr().unwrap().to_string())
        .collect();
    drop(listeners);
    let (clients, routes) = addresses.split_at(3);
    let program = Binary::locate(Locate::default()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    // `Server` waits until JetStream is there, which here needs two of them.
    let start = |number: usize| {
        let all: Vec<_> = routes.iter().map(|route| format!("nats://{route}")).collect();
        let store = dir.path().join(number.to_string());
        let config = format!(
            "server_name: server-{number}\nlisten: \"{}\"\njetstream {{ store_dir: {store:?} }}\n\
             cluster {{ name: test, listen: \"{}\", routes: {all:?} }}\n",
            clients[number], routes[number]
        );
        let file = dir.path().join(format!("{number}.conf"));
        std::fs::write(&file, config).unwrap();
        Command::new(program.path())
            .arg("-c")
            .arg(file)
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    };
    let first = start(0);
    let config = Config::at(format!("nats://{}", clients[0]));
    until("the first server listens", async || {
        Mesh::connect(&config).await.is_ok()
    })
    .await;
    let mesh = Mesh::connect(&config).await.unwrap();
    let topology = Topology::new(&TopologyConfig {
        replicas: 3,
        ..TopologyConfig::default()
    })
    .unwrap();
    // Without a majority there is no leader.
    let error = mesh.verify(&topology).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let others = async { (start(1), start(2)) };
    let (ensured, others) = tokio::join!(mesh.ensure(&topology), others);
    ensured.unwrap();
    assert_eq!(mesh.verify(&topology).await.unwrap(), []);
    drop((first, others));
}
