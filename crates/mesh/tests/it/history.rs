//! Scans, republished messages and paused consumers.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use herald_mesh::{ConsumeOptions, RawMessage, Subject, streams};
use herald_model::{Lane, time::Timestamp};

use crate::harness::{CONSUMER, Fixture, LIMIT, ScriptedHandler, chunk};

async fn within_limit<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future)
        .await
        .expect("within the timeout")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_returns_the_requested_messages_and_ends() {
    let fixture = Fixture::start().await;
    let mesh = &fixture.mesh;
    fixture.publish(1..=1_500).await;
    let high = Subject::TimelineDeliver(Lane::High);
    mesh.publish(high, None, &chunk(9_999)).await.unwrap();
    fixture.publish(1_501..=1_600).await;

    let sequences = async |filter: Option<&'static str>, from: u64, to: u64| -> Vec<u64> {
        let scan = mesh.scan(streams::TIMELINE, filter, from, to);
        within_limit(scan.map_ok(|message| message.sequence).try_collect())
            .await
            .unwrap()
    };
    assert_eq!(
        sequences(None, 1, u64::MAX).await,
        (1..=1_601).collect::<Vec<_>>()
    );
    assert_eq!(
        sequences(None, 1_590, 1_595).await,
        (1_590..=1_595).collect::<Vec<_>>()
    );
    assert_eq!(
        sequences(Some("timeline.v1.deliver.high"), 1, 1_601).await,
        [1_501]
    );
    // No match at all, or none before the end.
    assert_eq!(
        sequences(Some("timeline.v1.deliver.low"), 1, 1_601).await,
        [0_u64; 0]
    );
    assert_eq!(
        sequences(Some("timeline.v1.deliver.high"), 1, 1_500).await,
        [0_u64; 0]
    );
    assert_eq!(sequences(None, 5_000, u64::MAX).await, [0_u64; 0]);
    assert_eq!(sequences(None, 10, 5).await, [0_u64; 0]);

    let missing = mesh.scan("NOWHERE", None, 1, 1).collect::<Vec<_>>();
    let missing = within_limit(missing).await;
    assert!(matches!(&missing[..], [Err(_)]), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sequence_since_finds_the_first_message_despite_removed_ones() {
    let fixture = Fixture::start().await;
    let mesh = &fixture.mesh;
    assert_eq!(
        mesh.sequence_since(streams::TIMELINE, Timestamp(0))
            .await
            .unwrap(),
        1
    );
    fixture.publish(1..=40).await;
    let stream = fixture
        .jetstream()
        .await
        .get_stream(streams::TIMELINE)
        .await
        .unwrap();
    let at = mesh
        .message(streams::TIMELINE, 21)
        .await
        .unwrap()
        .unwrap()
        .published_at;
    for sequence in [19, 20, 25] {
        stream.delete_message(sequence).await.unwrap();
    }
    assert!(mesh.message(streams::TIMELINE, 0).await.unwrap().is_none());
    let since = mesh.sequence_since(streams::TIMELINE, at).await.unwrap();
    let all: Vec<RawMessage> = within_limit(mesh.scan(streams::TIMELINE, None, 1, 40).try_collect())
        .await
        .unwrap();
    assert_eq!(all.len(), 37);
    assert!(
        all.iter()
            .all(|message| (message.sequence >= since) == (message.published_at >= at)),
        "{since}"
    );
    assert_eq!(
        mesh.sequence_since(streams::TIMELINE, Timestamp(0))
            .await
            .unwrap(),
        1
    );
    assert_eq!(
        mesh.sequence_since(streams::TIMELINE, Timestamp::now())
            .await
            .unwrap(),
        41
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_consumer_delivers_nothing_until_it_is_resumed() {
    let fixture = Fixture::start().await;
    let mesh = &fixture.mesh;
    let until = Timestamp::now().plus(Duration::from_hours(1));
    mesh.pause(streams::TIMELINE, CONSUMER, until).await.unwrap();
    let (script, mut seen) = ScriptedHandler::acks();
    let worker = fixture.spawn_worker(script, ConsumeOptions::default());
    fixture.publish([1]).await;
    let stream = fixture
        .jetstream()
        .await
        .get_stream(streams::TIMELINE)
        .await
        .unwrap();
    // `ensure` keeps the pause.
    mesh.ensure(&fixture.topology).await.unwrap();
    let info = stream.consumer_info(CONSUMER).await.unwrap();
    assert!(info.paused);
    assert_eq!(info.delivered.consumer_sequence, 0);
    let lag = async || {
        let all = mesh.lag(&fixture.topology).await.unwrap();
        let mut consumers = all.into_iter().flat_map(|stream| stream.consumers);
        consumers.find(|lag| lag.consumer == CONSUMER).unwrap()
    };
    let paused = lag().await;
    assert!(paused.paused_for > Duration::from_mins(59), "{paused:?}");
    assert_eq!(paused.delivered_sequence, 0);
    mesh.resume(streams::TIMELINE, CONSUMER).await.unwrap();
    let delivery = seen.next().await;
    assert_eq!(delivery.sequence, 1);
    let resumed = lag().await;
    assert_eq!(
        (resumed.paused_for, resumed.delivered_sequence),
        (Duration::ZERO, 1)
    );
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_republished_message_has_the_same_payload_and_subject() {
    let fixture = Fixture::start().await;
    fixture.publish([7]).await;
    let message = fixture.mesh.message(streams::TIMELINE, 1).await.unwrap().unwrap();
    let again = fixture.mesh.republish(&message).await.unwrap();
    assert_eq!((again.sequence, again.duplicate), (2, false));
    let again = fixture.mesh.message(streams::TIMELINE, 2).await.unwrap().unwrap();
    assert_eq!((again.payload, again.subject), (message.payload, message.subject));
}
