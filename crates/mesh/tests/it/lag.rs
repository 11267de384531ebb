use std::time::Duration;

use herald_mesh::{ConsumeOptions, Disposition, Subject, streams};
use herald_model::Lane;
use herald_proto::mesh_v1::TimelineChunk;
use tokio::sync::watch;

use crate::harness::{CONSUMER, Fixture, ScriptedHandler, chunk, until};

#[tokio::test]
async fn one_consumer_is_read_and_a_missing_one_is_none() {
    let fixture = Fixture::start().await;
    let spec = fixture.consumer();
    let empty = fixture.mesh.lag_of(spec).await.unwrap().unwrap();
    assert_eq!((empty.outstanding_count(), empty.delivered_at), (0, None));
    fixture.publish(1..=3).await;
    let (handler, mut deliveries) = ScriptedHandler::acks();
    let worker = fixture.spawn_worker(handler, ConsumeOptions::default());
    deliveries.posts(1..=3).await;
    fixture.wait_until_settled().await;
    let done = fixture.mesh.lag_of(spec).await.unwrap().unwrap();
    assert_eq!((done.outstanding_count(), done.delivered_count), (0, 3));
    assert!(done.delivered_at.is_some());
    worker.stop().await;

    let jetstream = fixture.jetstream().await;
    let stream = jetstream.get_stream(streams::TIMELINE).await.unwrap();
    stream.delete_consumer(CONSUMER).await.unwrap();
    assert_eq!(fixture.mesh.lag_of(spec).await.unwrap(), None);
    jetstream.delete_stream(streams::TIMELINE).await.unwrap();
    assert_eq!(fixture.mesh.lag_of(spec).await.unwrap(), None);
}

#[tokio::test]
async fn a_sample_is_spread_over_the_messages_of_a_consumer() {
    let fixture = Fixture::start().await;
    let spec = fixture.consumer();
    let posts = async |after, count| -> Vec<u64> {
        let messages = fixture.mesh.sample(spec, after, count).await.unwrap();
        let decoded = messages
            .iter()
            .map(|message| message.decode::<TimelineChunk>().unwrap());
        decoded.map(|chunk| chunk.post_id).collect()
    };
    assert!(posts(0, 10).await.is_empty());
    fixture.publish([1]).await;
    let other = Subject::TimelineDeliver(Lane::Low);
    fixture.mesh.publish(other, None, &chunk(2)).await.unwrap();
    fixture.publish(3..=21).await;
    let all: Vec<u64> = std::iter::once(1).chain(3..=21).collect();
    let read = posts(0, 100).await;
    assert_eq!(read.len(), all.len(), "the other lane is left out");
    let some = posts(1, 4).await;
    assert_eq!(some.len(), 4);
    assert!(some.iter().all(|post| *post > 2), "{some:?}");
    assert!(posts(21, 4).await.is_empty());
}

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
