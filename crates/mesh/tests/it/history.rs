//! Going back in a stream, and holding a consumer.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use herald_mesh::{ConsumeOptions, RawMessage, Subject, streams};
use herald_model::{Lane, time::Timestamp};

use crate::harness::{CONSUMER, Fixture, LIMIT, Script, chunk};

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_brings_what_it_was_asked_for_and_ends() {
    let fixture = Fixture::start().await;
    let mesh = &fixture.mesh;
    fixture.publish(1..=1_500).await;
    let high = Subject::TimelineDeliver(Lane::High);
    mesh.publish(high, None, &chunk(9_999)).await.unwrap();
    fixture.publish(1_501..=1_600).await;

    let sequences = async |filter: Option<&'static str>, from: u64, to: u64| -> Vec<u64> {
        let scan = mesh.scan(streams::TIMELINE, filter, from, to);
        within(scan.map_ok(|message| message.sequence).try_collect())
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
    // Nothing is there, or nothing before the end.
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
    let missing = within(missing).await;
    assert!(matches!(&missing[..], [Err(_)]), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_has_its_sequence_also_among_removed_messages() {
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
    let all: Vec<RawMessage> = within(mesh.scan(streams::TIMELINE, None, 1, 40).try_collect())
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
async fn a_paused_consumer_delivers_nothing_until_it_goes_on() {
    let fixture = Fixture::start().await;
    let mesh = &fixture.mesh;
    let until = Timestamp::now().plus(Duration::from_hours(1));
    mesh.pause(streams::TIMELINE, CONSUMER, until).await.unwrap();
    let (script, mut seen) = Script::acks();
    let work = fixture.work(script, ConsumeOptions::default());
    fixture.publish([1]).await;
    let stream = fixture
        .jetstream()
        .await
        .get_stream(streams::TIMELINE)
        .await
        .unwrap();
    // What brings the server to the topology leaves the pause alone.
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
    work.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_published_again_has_the_same_payload() {
    let fixture = Fixture::start().await;
    fixture.publish([7]).await;
    let message = fixture.mesh.message(streams::TIMELINE, 1).await.unwrap().unwrap();
    let again = fixture.mesh.republish(&message).await.unwrap();
    assert_eq!((again.sequence, again.duplicate), (2, false));
    let again = fixture.mesh.message(streams::TIMELINE, 2).await.unwrap().unwrap();
    assert_eq!((again.payload, again.subject), (message.payload, message.subject));
}
