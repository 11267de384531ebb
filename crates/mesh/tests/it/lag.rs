use std::time::Duration;

use herald_mesh::{ConsumeOptions, Disposition, streams};
use tokio::sync::watch;

use crate::harness::{CONSUMER, Fixture, ScriptedHandler, until};

#[tokio::test]
async fn lag_reports_outstanding_messages_and_their_age() {
    let fixture = Fixture::start().await;
    let read = async || {
        let streams = fixture.mesh.lag(&fixture.topology).await.unwrap();
        let stream = streams
            .into_iter()
            .find(|stream| stream.stream == streams::TIMELINE)
            .unwrap();
        let consumer = stream
            .consumers
            .iter()
            .find(|consumer| consumer.consumer == CONSUMER)
            .unwrap()
            .clone();
        (stream, consumer)
    };
    let (stream, consumer) = read().await;
    assert_eq!((stream.message_count, stream.last_sequence), (0, 0));
    assert_eq!(
        stream.byte_count_max,
        fixture
            .topology
            .stream(streams::TIMELINE)
            .unwrap()
            .limits
            .bytes_max
    );
    assert_eq!(
        (consumer.outstanding_count(), consumer.oldest_age),
        (0, Duration::ZERO)
    );

    fixture.publish(1..=3).await;
    // The server updates its consumers after it has acknowledged the publish.
    until("the messages are pending", async || {
        read().await.1.pending_count == 3
    })
    .await;
    let (stream, consumer) = read().await;
    assert_eq!((stream.message_count, stream.last_sequence), (3, 3));
    assert_eq!((consumer.pending_count, consumer.ack_pending_count), (3, 0));
    assert!(consumer.oldest_age > Duration::ZERO && consumer.oldest_age < Duration::from_mins(1));

    let (release, released) = watch::channel(false);
    let (handler, mut seen) = ScriptedHandler::new(move |delivery| {
        let mut released = released.clone();
        async move {
            if delivery.sequence == 2 {
                released.wait_for(|released| *released).await.unwrap();
            }
            Disposition::Ack
        }
    });
    let worker = fixture.spawn_worker(handler, ConsumeOptions::default());
    seen.posts(1..=3).await;
    until("two of three are acknowledged", async || {
        read().await.1.ack_pending_count <= 2
    })
    .await;
    let (_, consumer) = read().await;
    assert_eq!(consumer.pending_count, 0);
    assert!(consumer.oldest_age > Duration::ZERO);
    assert!(consumer.ack_floor <= 1);

    release.send(true).unwrap();
    fixture.wait_until_settled().await;
    let (_, consumer) = read().await;
    assert_eq!(
        (
            consumer.outstanding_count(),
            consumer.oldest_age,
            consumer.ack_floor
        ),
        (0, Duration::ZERO, 3)
    );
    assert_eq!((consumer.delivered_count, consumer.acknowledged_count), (3, 3));
    assert!(
        consumer.waiting_pull_count > 0,
        "an idle worker has a waiting pull"
    );
    worker.stop().await;
    until("no pull waits", async || read().await.1.waiting_pull_count == 0).await;
}
