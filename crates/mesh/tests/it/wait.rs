//! Messages that wait in the delay queue.

use std::sync::Arc;
use std::time::Duration;

use herald_mesh::{
    ConsumeOptions, Disposition, Redrive, Requeuer, Subject, Wait, consumers, consumers::ConsumerKind,
    streams,
};
use herald_model::{Lane, time::Timestamp};
use herald_proto::mesh_v1::PushChunk;
use prost::Message as _;
use tokio_util::sync::CancellationToken;

use crate::harness::{CONSUMER, Fixture, RunningWorkers, SUBJECT, ScriptedHandler, chunk, until};

const PUSH: Subject = Subject::PushDeliver(Lane::Low);
const PUSH_CONSUMER: &str = "push-low";

fn wait(number: u32, after: Duration) -> Wait {
    Wait {
        after,
        number,
        payload: None,
        reason: "the archive is behind".into(),
        failed: None,
    }
}

fn run_requeuer(fixture: &Fixture) -> RunningWorkers {
    RunningWorkers::new(
        fixture,
        [(consumers::LATER, Arc::new(Requeuer::new(fixture.mesh.clone())))],
    )
}

async fn later_count(fixture: &Fixture) -> u64 {
    let lag = fixture.mesh.lag(&fixture.topology).await.unwrap();
    let later = lag.iter().find(|lag| lag.stream == streams::LATER).unwrap();
    later.message_count
}

#[tokio::test]
async fn a_wait_spends_no_attempt_and_its_copy_continues() {
    let fixture = Fixture::start_with(|config| config.consumers.timeline.attempts_max = 2).await;
    fixture
        .mesh
        .publish(SUBJECT, Some("5/backfill/a"), &chunk(5))
        .await
        .unwrap();
    let (handler, mut seen) = ScriptedHandler::new(|delivery| async move {
        match delivery.waits() {
            0 if delivery.attempt == 1 => Disposition::retry("an error spends an attempt"),
            n @ 0..3 => Disposition::Wait(Wait {
                payload: (n == 1).then(|| chunk(6).encode_to_vec().into()),
                ..wait(n + 1, Duration::from_millis(300))
            }),
            _ => Disposition::Ack,
        }
    });
    let workers = RunningWorkers::new(&fixture, [(CONSUMER, handler)]);
    let requeuer = run_requeuer(&fixture);
    // Three waits, although the consumer has only two attempts. The failed attempt counts on in the copies.
    let mut deliveries = Vec::new();
    for _ in 0..5 {
        deliveries.push(seen.next().await);
    }
    until("no message is left", async || later_count(&fixture).await == 0).await;
    workers.stop().await;
    requeuer.stop().await;
    let read: Vec<_> = deliveries
        .iter()
        .map(|d| (d.waits(), d.attempt, crate::harness::post(d)))
        .collect();
    assert_eq!(read, [(0, 1, 5), (0, 2, 5), (1, 2, 5), (2, 2, 6), (3, 2, 6)]);
    assert_eq!(deliveries[4].id(), Some("5/backfill/a/wait/3"));
    assert_eq!(deliveries[4].subject, SUBJECT);
    assert_eq!(deliveries[4].published_at, deliveries[0].published_at);
    assert!(fixture.advisories().await.is_empty());
}

#[tokio::test]
async fn a_wait_with_a_failed_part_terminates_the_message_and_its_copy_continues() {
    let fixture = Fixture::start().await;
    fixture
        .mesh
        .publish(PUSH, Some("5/push/a"), &PushChunk::default())
        .await
        .unwrap();
    let (handler, mut seen) = ScriptedHandler::new(|delivery| async move {
        match delivery.waits() {
            0 => Disposition::Wait(Wait {
                failed: Some("one device refused".into()),
                ..wait(7, Duration::from_millis(200))
            }),
            _ => Disposition::Ack,
        }
    });
    let workers = RunningWorkers::new(&fixture, [(PUSH_CONSUMER, handler)]);
    let requeuer = run_requeuer(&fixture);
    seen.next().await;
    let copy = seen.next().await;
    assert_eq!(
        (copy.attempt, copy.waits(), copy.id()),
        (1, 7, Some("5/push/a/wait/7"))
    );
    until("the message is terminated", async || {
        fixture.advisories().await.len() == 1
    })
    .await;
    workers.stop().await;
    requeuer.stop().await;
    let (subject, body) = fixture.advisories().await.pop().unwrap();
    assert_eq!(subject, "MSG_TERMINATED.PUSH.push-low");
    assert!(body.contains("one device refused"), "{body}");
}

/// A crash between the copy and the acknowledgement repeats the wait.
#[tokio::test]
async fn a_repeated_wait_stores_no_second_copy_and_a_later_one_replaces_it() {
    let fixture = Fixture::start().await;
    let (handler, mut seen) = ScriptedHandler::new(|delivery| async move {
        let number = if delivery.sequence < 3 { 1 } else { 2 };
        Disposition::Wait(wait(number, Duration::from_mins(1)))
    });
    let workers = RunningWorkers::new(&fixture, [(PUSH_CONSUMER, handler)]);
    let jetstream = fixture.jetstream().await;
    for expected in [1, 1, 2] {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Herald-Id", "5/push/a");
        let sent = jetstream
            .publish_with_headers("push.v1.deliver.low", headers, "".into())
            .await;
        sent.unwrap().await.unwrap();
        seen.next().await;
        until("the message is acknowledged", async || {
            let floor = fixture
                .mesh
                .ack_floor(streams::PUSH, PUSH_CONSUMER)
                .await
                .unwrap();
            floor == fixture.mesh.last_sequence(streams::PUSH).await.unwrap()
        })
        .await;
        assert_eq!(later_count(&fixture).await, 1);
        assert_eq!(
            fixture.mesh.last_sequence(streams::LATER).await.unwrap(),
            expected
        );
    }
    workers.stop().await;
}

/// The server has no schedules, or the delay queue is full.
#[tokio::test]
async fn without_the_delay_queue_a_message_waits_in_its_consumer_until_its_last_attempt() {
    let fixture = Fixture::start_with(|config| config.consumers.timeline.attempts_max = 3).await;
    fixture.publish([5]).await;
    let mut consumer = fixture.consumer().clone();
    consumer.delay_limits.as_mut().unwrap().bytes_max = 0;
    let (handler, mut seen) = ScriptedHandler::new(|delivery| async move {
        assert!(!delivery.can_wait().await);
        Disposition::Wait(wait(1, Duration::from_millis(50)))
    });
    let shutdown = CancellationToken::new();
    let (mesh, stop) = (fixture.mesh.clone(), shutdown.clone());
    let worker = tokio::spawn(async move {
        mesh.consume(&consumer, handler, ConsumeOptions::default(), stop)
            .await
    });
    for attempt in 1..=3 {
        assert_eq!(seen.next().await.attempt, attempt);
    }
    until("the message is terminated", async || {
        fixture.advisories().await.len() == 1
    })
    .await;
    shutdown.cancel();
    worker.await.unwrap().unwrap();
    assert!(seen.rest().is_empty());
    assert_eq!(fixture.mesh.last_sequence(streams::LATER).await.unwrap(), 0);
    let (_, body) = fixture.advisories().await.pop().unwrap();
    assert!(body.contains("the archive is behind (attempt 3 of 3)"), "{body}");
}

#[tokio::test]
async fn a_redriven_message_that_waits_returns_to_its_original_stream() {
    let fixture = Fixture::start().await;
    let (handler, mut seen) = ScriptedHandler::new(|delivery| async move {
        match delivery.redrive {
            Some(_) => Disposition::Wait(wait(4, Duration::from_millis(200))),
            None => Disposition::Ack,
        }
    });
    let redrive_consumer = consumers::redrive(ConsumerKind::Push);
    let workers = RunningWorkers::new(
        &fixture,
        [(PUSH_CONSUMER, handler.clone()), (redrive_consumer, handler)],
    );
    let requeuer = run_requeuer(&fixture);
    let redrive = Redrive {
        kind: ConsumerKind::Push,
        dead_letter: 12,
        round: 1,
        subject: PUSH,
        sequence: 3,
        published_at: Timestamp(9),
        payload: PushChunk::default().encode_to_vec().into(),
        trace_parent: None,
        trace_state: None,
        id: "dlq/12/redrive/1".into(),
    };
    let sequence = fixture.mesh.redrive(&redrive).await.unwrap().sequence;
    assert!(seen.next().await.redrive.is_some());
    let copy = seen.next().await;
    assert_eq!((copy.redrive, copy.subject, copy.waits()), (None, PUSH, 4));
    assert_eq!((copy.attempt, copy.published_at), (1, Timestamp(9)));
    until("the redrive is acknowledged", async || {
        fixture
            .mesh
            .ack_floor(streams::REDRIVE, redrive_consumer)
            .await
            .unwrap()
            == sequence
    })
    .await;
    workers.stop().await;
    requeuer.stop().await;
}
