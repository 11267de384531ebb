//! Snapshots of streams.

use herald_mesh::{ErrorKind, Subject, streams};
use herald_model::{Channel, Lane};
use herald_proto::mesh_v1::{DeliveriesSettled, TimelineChunk};

use crate::harness::Fixture;

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_restored_with_its_messages_sequences_and_consumers() {
    let fixture = Fixture::start().await;
    let mesh = &fixture.mesh;
    // More than one chunk.
    let body = TimelineChunk {
        recipients: vec![7; 500_000].into(),
        ..TimelineChunk::default()
    };
    for _ in 0..3 {
        mesh.publish(Subject::TimelineDeliver(Lane::Normal), None, &body)
            .await
            .unwrap();
    }
    let before = mesh.sequences(streams::TIMELINE).await.unwrap().unwrap();
    let mut bytes = Vec::new();
    let header = mesh.snapshot(streams::TIMELINE, &mut bytes).await.unwrap();
    assert_eq!((header.message_count(), header.last_sequence()), (3, 3));

    // The stream exists.
    let restored = mesh
        .restore_snapshot(streams::TIMELINE, &header, &mut &*bytes)
        .await;
    assert_eq!(restored.unwrap_err().kind(), ErrorKind::Rejected);
    let other = Fixture::start_empty().await;
    let header = serde_json::from_str(&serde_json::to_string(&header).unwrap()).unwrap();
    let restored = other
        .mesh
        .restore_snapshot(streams::TIMELINE, &header, &mut &*bytes)
        .await;
    restored.unwrap();
    assert_eq!(
        other.mesh.sequences(streams::TIMELINE).await.unwrap().unwrap(),
        before
    );
    assert_eq!(
        other
            .mesh
            .pending(streams::TIMELINE, "timeline-normal")
            .await
            .unwrap(),
        3
    );
    let message = other.mesh.message(streams::TIMELINE, 2).await.unwrap().unwrap();
    assert_eq!(message.decode::<TimelineChunk>().unwrap(), body);

    // A stream without messages.
    let mut bytes = Vec::new();
    let header = mesh.snapshot(streams::EVENTS, &mut bytes).await.unwrap();
    let restored = other
        .mesh
        .restore_snapshot(streams::EVENTS, &header, &mut &*bytes)
        .await;
    restored.unwrap();
    let event = DeliveriesSettled::default();
    let published = other
        .mesh
        .publish(Subject::Settled(Channel::Push), None, &event)
        .await;
    assert_eq!(published.unwrap().sequence, 1);
    assert!(mesh.snapshot("NOTHING", &mut bytes).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_is_refused() {
    let fixture = Fixture::start().await;
    let body = TimelineChunk::default();
    fixture
        .mesh
        .publish(Subject::TimelineDeliver(Lane::Normal), None, &body)
        .await
        .unwrap();
    let mut bytes = Vec::new();
    let header = fixture
        .mesh
        .snapshot(streams::TIMELINE, &mut bytes)
        .await
        .unwrap();
    let other = Fixture::start_empty().await;
    let half = &bytes[..bytes.len() / 2];
    let restored = other
        .mesh
        .restore_snapshot(streams::TIMELINE, &header, &mut &*half)
        .await;
    assert!(restored.is_err());
    assert_eq!(other.mesh.sequences(streams::TIMELINE).await.unwrap(), None);
}
