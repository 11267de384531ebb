use std::sync::{Arc, Mutex};

use futures::StreamExt as _;
use herald_local_nats::{Config as ServerConfig, Server};
use herald_mesh::consumers::ConsumerKind;
use herald_mesh::{Config, ErrorKind, Mesh, Redrive, Subject, streams};
use herald_model::Lane;
use herald_model::time::Timestamp;
use herald_proto::mesh_v1::TimelineChunk;

use crate::harness::{Fixture, LIMIT, SUBJECT, chunk};

#[tokio::test]
async fn a_message_id_is_stored_once_and_a_duplicate_returns_the_first_sequence() {
    let fixture = Fixture::start().await;
    let first = fixture
        .mesh
        .publish(SUBJECT, Some("1/timeline/a"), &chunk(1))
        .await
        .unwrap();
    let again = fixture
        .mesh
        .publish(SUBJECT, Some("1/timeline/a"), &chunk(1))
        .await
        .unwrap();
    let other = fixture
        .mesh
        .publish(SUBJECT, Some("1/timeline/b"), &chunk(2))
        .await
        .unwrap();
    assert_eq!((first.sequence, first.duplicate), (1, false));
    assert_eq!((again.sequence, again.duplicate), (1, true));
    assert_eq!((other.sequence, other.duplicate), (2, false));

    let stored = fixture.mesh.message(streams::TIMELINE, 1).await.unwrap().unwrap();
    assert_eq!(stored.decode::<TimelineChunk>().unwrap(), chunk(1));
    assert_eq!(stored.subject, SUBJECT.as_str());
    assert_eq!(stored.id(), Some("1/timeline/a"));
    assert!(
        fixture
            .mesh
            .message(streams::TIMELINE, 3)
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(fixture.mesh.last_sequence(streams::TIMELINE).await.unwrap(), 2);
}

#[tokio::test]
async fn a_full_stream_refuses_messages_and_keeps_the_stored_ones() {
    let fixture = Fixture::start_with(|config| config.timeline.bytes_max = 1 << 20).await;
    let large = TimelineChunk {
        recipients: vec![0; 100_000].into(),
        ..chunk(1)
    };
    let mut stored = 0;
    let error = loop {
        match fixture
            .mesh
            .publish(SUBJECT, Some(&stored.to_string()), &large)
            .await
        {
            Ok(published) => stored = published.sequence,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    assert!((1..=10).contains(&stored));
    assert_eq!(
        fixture.mesh.last_sequence(streams::TIMELINE).await.unwrap(),
        stored
    );
    assert!(
        fixture
            .mesh
            .message(streams::TIMELINE, 1)
            .await
            .unwrap()
            .is_some()
    );
    // Other streams still accept messages.
    fixture
        .mesh
        .publish(Subject::PushDeliver(Lane::High), None, &chunk(1))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_stream_with_too_many_messages_is_full() {
    let fixture = Fixture::start().await;
    let jetstream = fixture.jetstream().await;
    let mut config = jetstream
        .get_stream(streams::TIMELINE)
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    config.max_messages = 1;
    jetstream.update_stream(&config).await.unwrap();
    fixture.publish([1]).await;
    let error = fixture.mesh.publish(SUBJECT, None, &chunk(2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
}

#[tokio::test]
async fn a_message_too_large_for_the_server_or_the_stream_is_refused_as_too_large() {
    let fixture = Fixture::start().await;
    let large = TimelineChunk {
        recipients: vec![0; 2 << 20].into(),
        ..chunk(1)
    };
    let error = fixture
        .mesh
        .publish(SUBJECT, Some("large"), &large)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");

    let jetstream = fixture.jetstream().await;
    let mut config = jetstream
        .get_stream(streams::TIMELINE)
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    config.max_message_size = 100;
    jetstream.update_stream(&config).await.unwrap();
    let error = fixture.mesh.publish(SUBJECT, None, &chunk(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
}

/// Uses the longest numbers and names, so that the redrive has the longest headers.
#[tokio::test]
async fn the_largest_published_message_can_be_redriven() {
    let fixture = Fixture::start().await;
    let publish = async |bytes: usize| {
        let body = vec![0; bytes].into();
        fixture
            .mesh
            .publish_bytes(SUBJECT, Some("1/timeline/a"), body)
            .await
    };
    let (mut fits, mut too_large) = (0, 2 << 20);
    while too_large - fits > 1 {
        let middle = usize::midpoint(fits, too_large);
        match publish(middle).await {
            Ok(_) => fits = middle,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
                too_large = middle;
            }
        }
    }
    let max_payload = fixture.jetstream().await.client().max_payload();
    // Minus the headers of the first publish, without a trace.
    let expected = max_payload - 1_024;
    assert!(
        (expected - 200..expected).contains(&fits),
        "{fits} of {max_payload}"
    );
    let error = publish(too_large).await.unwrap_err();
    assert!(
        error.to_string().ends_with("of which 1024 are reserved"),
        "{error}"
    );

    let redrive = |bytes| Redrive {
        kind: ConsumerKind::AnalyticsEvents,
        dead_letter: u64::MAX,
        round: u32::MAX,
        subject: Subject::TimelineBackfill(Lane::Normal),
        sequence: u64::MAX,
        published_at: Timestamp(i64::MIN),
        payload: vec![0; bytes].into(),
        trace_parent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        trace_state: Some("x".repeat(512)),
        id: format!("dlq/{}/redrive/{}", u64::MAX, u32::MAX),
    };
    fixture.mesh.redrive(&redrive(fits)).await.unwrap();
    let error = fixture.mesh.redrive(&redrive(max_payload)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
}

#[tokio::test]
async fn a_missing_stream_is_unavailable() {
    let fixture = Fixture::start().await;
    fixture
        .jetstream()
        .await
        .delete_stream(streams::TIMELINE)
        .await
        .unwrap();
    let error = fixture.mesh.publish(SUBJECT, None, &chunk(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let error = fixture.mesh.last_sequence(streams::TIMELINE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn live_messages_reach_all_subscribers() {
    let fixture = Fixture::start().await;
    fixture.mesh.publish_live("no subscriber".into()).await.unwrap();
    fixture.mesh.flush().await.unwrap();
    let mut first = fixture.mesh.subscribe_live().await.unwrap();
    let mut second = fixture.mesh.subscribe_live().await.unwrap();
    fixture.mesh.publish_live("one".into()).await.unwrap();
    for subscriber in [&mut first, &mut second] {
        let message = tokio::time::timeout(LIMIT, subscriber.next())
            .await
            .expect("a message within the timeout");
        assert_eq!(message.unwrap(), "one");
    }
}

/// A server whose stream is this test: it answers that these ids are in process, and records the ids it stores.
async fn stream_with_ids_in_process(
    server: &Server,
    subject: Subject,
    in_process: &'static [&'static str],
) -> Arc<Mutex<Vec<String>>> {
    let client = async_nats::connect(server.client_url()).await.unwrap();
    let mut published = client.subscribe(subject.as_str()).await.unwrap();
    client.flush().await.unwrap();
    let stored = Arc::new(Mutex::new(Vec::new()));
    let ids = stored.clone();
    tokio::spawn(async move {
        while let Some(message) = published.next().await {
            let headers = message.headers.unwrap();
            let id = headers.get(async_nats::header::NATS_MESSAGE_ID).unwrap().as_str();
            let answer = if in_process.contains(&id) {
                r#"{"error":{"code":409,"err_code":10158,"description":"duplicate message id is in process"},"stream":"S","seq":0}"#
            } else {
                ids.lock().unwrap().push(id.to_owned());
                r#"{"stream":"S","seq":7}"#
            };
            client
                .publish(message.reply.unwrap(), answer.into())
                .await
                .unwrap();
        }
    });
    stored
}

#[tokio::test]
async fn a_chunk_whose_id_stays_in_process_is_published_under_a_second_id() {
    let server = Server::start(ServerConfig::default()).await.unwrap();
    let mesh = Mesh::connect(&Config::at(server.client_url())).await.unwrap();
    let stored = stream_with_ids_in_process(&server, SUBJECT, &["1/timeline/a"]).await;
    let published = mesh.publish(SUBJECT, Some("1/timeline/a"), &chunk(1)).await;
    assert_eq!(published.unwrap().sequence, 7);
    assert_eq!(*stored.lock().unwrap(), ["1/timeline/a/retry"]);
}

#[tokio::test]
async fn a_post_whose_id_stays_in_process_is_never_published_under_a_second_id() {
    let server = Server::start(ServerConfig::default()).await.unwrap();
    let config = Config {
        publish_retry_ms_max: 4_000,
        ..Config::at(server.client_url())
    };
    let mesh = Mesh::connect(&config).await.unwrap();
    let subject = Subject::PostCreated(Lane::Normal);
    let stored = stream_with_ids_in_process(&server, subject, &["request"]).await;
    let error = mesh
        .publish(subject, Some("request"), &chunk(1))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(stored.lock().unwrap().is_empty());
}
