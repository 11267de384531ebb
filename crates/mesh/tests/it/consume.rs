use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt as _;
use herald_mesh::{ConsumeOptions, Disposition, ErrorKind, streams};
use herald_proto::mesh_v1::TimelineChunk;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::harness::{CONSUMER, Fixture, SUBJECT, ScriptedHandler, post, until};

#[tokio::test]
async fn messages_are_handled_and_acknowledged_once() {
    let fixture = Fixture::start().await;
    fixture.publish(1..=500).await;
    let (handler, mut seen) = ScriptedHandler::acks();
    let worker = fixture.spawn_worker(handler, ConsumeOptions::default());
    let counts = seen.posts(1..=500).await;
    fixture.publish(501..=1000).await;
    let more = seen.posts(501..=1000).await;
    fixture.wait_until_settled().await;
    worker.stop().await;
    assert!(counts.values().chain(more.values()).all(|count| *count == 1));
    assert!(seen.rest().is_empty());
}

#[tokio::test]
async fn no_more_than_in_flight_max_run_at_a_time() {
    let fixture = Fixture::start().await;
    fixture.publish(1..=100).await;
    let gate = Arc::new(Semaphore::new(0));
    let (handler, mut seen, most) = ScriptedHandler::gated(&gate);
    let options = ConsumeOptions {
        in_flight_max: 7,
        batch_max: 50,
        paused: None,
    };
    let worker = fixture.spawn_worker(handler, options);
    for _ in 1..=7 {
        seen.next().await;
    }
    // One freed permit is enough for the next delivery.
    for _ in 8..=100 {
        gate.add_permits(1);
        seen.next().await;
    }
    assert_eq!(most.load(Ordering::SeqCst), 7);
    gate.add_permits(7);
    fixture.wait_until_settled().await;
    worker.stop().await;
}

#[tokio::test]
async fn an_undecodable_message_is_terminated_once_with_its_reason() {
    let fixture = Fixture::start().await;
    fixture
        .mesh
        .publish_bytes(SUBJECT, None, "\u{ff}not protobuf".into())
        .await
        .unwrap();
    let (handler, mut seen) =
        ScriptedHandler::new(async |delivery| match delivery.decode::<TimelineChunk>() {
            Ok(_) => Disposition::Ack,
            Err(disposition) => disposition,
        });
    let worker = fixture.spawn_worker(handler, ConsumeOptions::default());
    assert_eq!(seen.next().await.attempt, 1);
    until("the advisory is stored", async || {
        fixture.advisories().await.len() == 1
    })
    .await;
    fixture.wait_until_settled().await;
    worker.stop().await;
    let (subject, body) = fixture.advisories().await.pop().unwrap();
    assert_eq!(subject, "MSG_TERMINATED.TIMELINE.timeline-normal");
    assert!(
        body.contains("undecodable herald.mesh.v1.TimelineChunk on timeline.v1.deliver.normal"),
        "{body}"
    );
    assert!(body.contains("\"stream_seq\":1"), "{body}");
    assert!(seen.rest().is_empty());
}

#[tokio::test]
async fn a_message_on_an_unknown_subject_is_terminated_without_a_handler_call() {
    let fixture = Fixture::start().await;
    let jetstream = fixture.jetstream().await;
    jetstream
        .publish("timeline.v1.strange.normal", "x".into())
        .await
        .unwrap()
        .await
        .unwrap();
    let (handler, mut seen) = ScriptedHandler::acks();
    let worker = fixture.spawn_worker(handler, ConsumeOptions::default());
    until("the advisory is stored", async || {
        fixture.advisories().await.len() == 1
    })
    .await;
    worker.stop().await;
    let (_, body) = fixture.advisories().await.pop().unwrap();
    assert!(
        body.contains("unknown subject timeline.v1.strange.normal"),
        "{body}"
    );
    assert!(seen.rest().is_empty());
}

#[tokio::test]
async fn a_retry_comes_after_its_delay_and_a_panic_counts_as_an_attempt() {
    let fixture = Fixture::start().await;
    fixture.publish([1]).await;
    let delay = Duration::from_millis(300);
    let (handler, mut seen) = ScriptedHandler::new(move |delivery| async move {
        match delivery.attempt {
            1 => Disposition::retry_after(delay, "not yet"),
            2 => panic!("on purpose"),
            3 => Disposition::retry("not yet either"),
            _ => Disposition::Ack,
        }
    });
    let worker = fixture.spawn_worker(handler, ConsumeOptions::default());
    assert_eq!(seen.next().await.attempt, 1);
    let first = tokio::time::Instant::now();
    for attempt in 2..=4 {
        let delivery = seen.next().await;
        assert_eq!((delivery.attempt, delivery.sequence), (attempt, 1));
        if attempt == 2 {
            assert!(first.elapsed() >= delay.mul_f64(0.9), "{:?}", first.elapsed());
        }
    }
    fixture.wait_until_settled().await;
    worker.stop().await;
    assert!(seen.rest().is_empty());
}

#[tokio::test]
async fn the_last_attempt_that_fails_is_terminated_with_its_reason() {
    let fixture = Fixture::start_with(|config| config.consumers.timeline.attempts_max = 3).await;
    fixture.publish([1, 2]).await;
    let (handler, mut seen) = ScriptedHandler::new(|delivery| async move {
        if post(&delivery) == 1 {
            Disposition::retry("always")
        } else if delivery.is_last_attempt() {
            Disposition::Ack
        } else {
            Disposition::retry("until the last")
        }
    });
    let worker = fixture.spawn_worker(handler, ConsumeOptions::default());
    fixture.wait_until_settled().await;
    worker.stop().await;
    let mut attempts: Vec<_> = seen
        .rest()
        .iter()
        .map(|delivery| (post(delivery), delivery.attempt))
        .collect();
    attempts.sort_unstable();
    assert_eq!(attempts, [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]);
    let (subject, body) = fixture.advisories().await.pop().unwrap();
    assert_eq!(subject, "MSG_TERMINATED.TIMELINE.timeline-normal");
    assert!(body.contains("always (attempt 3 of 3)"), "{body}");
}

/// Lowers `attempts_max` from 10 to 2 while a message waits for its fifth attempt. nats-server 2.15 publishes an
/// advisory; 2.11 publishes none, and only an audit finds the message.
#[tokio::test]
async fn a_message_beyond_a_lowered_attempts_max_is_reported_by_an_advisory() {
    let mut fixture = Fixture::start_with(|config| config.consumers.timeline.attempts_max = 10).await;
    fixture.publish([1]).await;
    let (handler, mut seen) = ScriptedHandler::new(async |delivery| {
        if delivery.attempt == 4 {
            Disposition::retry_after(Duration::from_secs(1), "busy")
        } else {
            Disposition::retry("busy")
        }
    });
    let worker = fixture.spawn_worker(handler, ConsumeOptions::default());
    while seen.next().await.attempt != 4 {}
    worker.stop().await;
    let consumer = fixture.topology.consumers.iter_mut();
    consumer
        .filter(|consumer| consumer.name == CONSUMER)
        .for_each(|consumer| consumer.attempts_max = 2);
    fixture.mesh.ensure(&fixture.topology).await.unwrap();

    let (handler, mut seen) = ScriptedHandler::acks();
    let worker = fixture.spawn_worker(handler, ConsumeOptions::default());
    fixture.publish([2]).await;
    assert_eq!(seen.posts([2]).await.len(), 1);
    until("the advisory is stored", async || {
        fixture.advisories().await.len() == 1
    })
    .await;
    worker.stop().await;
    let (subject, body) = fixture.advisories().await.pop().unwrap();
    assert_eq!(subject, "MAX_DELIVERIES.TIMELINE.timeline-normal");
    assert!(body.contains("\"stream_seq\":1,"), "{body}");
    assert!(seen.rest().is_empty());
}

#[tokio::test]
async fn a_fault_gets_fewer_attempts_than_a_retry() {
    let fixture = Fixture::start_with(|config| {
        config.consumers.timeline.attempts_max = 6;
        config.consumers.timeline.fault_attempts_max = 3;
    })
    .await;
    fixture.publish(1..=5).await;
    let (handler, mut seen) = ScriptedHandler::new(|delivery| async move {
        let attempt = delivery.attempt;
        match post(&delivery) {
            1 => panic!("always"),
            2 => Disposition::fault("a corrupt row"),
            // A fault on an attempt after `fault_attempts_max`.
            3 if attempt == 5 => Disposition::fault("now corrupt"),
            3 | 4 => Disposition::retry("busy"),
            _ if attempt < 3 => Disposition::fault("repaired by the third attempt"),
            _ => Disposition::Ack,
        }
    });
    let worker = fixture.spawn_worker(handler, ConsumeOptions::default());
    fixture.wait_until_settled().await;
    worker.stop().await;
    let mut attempts = [0; 6];
    for delivery in seen.rest() {
        attempts[usize::try_from(post(&delivery)).unwrap()] += 1;
    }
    assert_eq!(attempts, [0, 3, 3, 5, 6, 3]);
    until("the advisories are stored", async || {
        fixture.advisories().await.len() == 4
    })
    .await;
    let advisories = fixture.advisories().await;
    for (sequence, reason) in [
        (1, "panic: always (attempt 3, permanent error)"),
        (2, "a corrupt row (attempt 3, permanent error)"),
        (3, "now corrupt (attempt 5, permanent error)"),
        (4, "busy (attempt 6 of 6)"),
    ] {
        let field = format!("\"stream_seq\":{sequence},");
        let (subject, body) = advisories.iter().find(|(_, body)| body.contains(&field)).unwrap();
        assert_eq!(subject, "MSG_TERMINATED.TIMELINE.timeline-normal");
        assert!(body.contains(reason), "{body}");
    }
}

/// The loop sends three heartbeats per `ack_wait`: the handler ends after two `ack_wait`s.
#[tokio::test]
async fn a_slow_handlers_message_is_not_redelivered() {
    let fixture = Fixture::start_with(|config| config.consumers.timeline.ack_wait_seconds = 1).await;
    fixture.publish([1]).await;
    let client = async_nats::connect(fixture.server.client_url()).await.unwrap();
    let acks = client
        .subscribe("$JS.ACK.TIMELINE.timeline-normal.>")
        .await
        .unwrap();
    client.flush().await.unwrap();
    let acks = Arc::new(Mutex::new(acks));
    let (handler, mut seen) = ScriptedHandler::new(move |_| {
        let acks = acks.clone();
        async move {
            let mut acks = acks.lock().await;
            let mut progress = 0;
            while progress < 7 {
                progress += usize::from(acks.next().await.unwrap().payload == "+WPI");
            }
            Disposition::Ack
        }
    });
    let worker = fixture.spawn_worker(handler, ConsumeOptions::default());
    seen.next().await;
    fixture.wait_until_settled().await;
    worker.stop().await;
    assert!(seen.rest().is_empty());
}

#[tokio::test]
async fn a_paused_worker_pulls_nothing_until_the_pause_ends() {
    let fixture = Fixture::start().await;
    let (pause, paused) = watch::channel(false);
    let (handler, mut seen) = ScriptedHandler::acks();
    let worker = fixture.spawn_worker(
        handler,
        ConsumeOptions {
            paused: Some(paused),
            ..ConsumeOptions::default()
        },
    );
    fixture.publish([1]).await;
    seen.posts([1]).await;

    pause.send(true).unwrap();
    let waiting = async || {
        let lag = fixture.mesh.lag(&fixture.topology).await.unwrap();
        let consumer = lag
            .into_iter()
            .flat_map(|s| s.consumers)
            .find(|c| c.consumer == "timeline-normal")
            .unwrap();
        (consumer.waiting_pull_count, consumer.pending_count)
    };
    until("no pull waits", async || waiting().await.0 == 0).await;
    fixture.publish(2..=10).await;
    until("the messages are pending", async || waiting().await == (0, 9)).await;
    assert!(seen.rest().is_empty());

    pause.send(false).unwrap();
    assert!(seen.posts(2..=10).await.values().all(|count| *count == 1));
    // A closed channel ends the pause.
    pause.send(true).unwrap();
    drop(pause);
    fixture.publish([11]).await;
    seen.posts([11]).await;
    fixture.wait_until_settled().await;
    worker.stop().await;
}

#[tokio::test]
async fn a_shutdown_finishes_running_handlers_and_releases_other_messages_at_once() {
    let fixture = Fixture::start().await;
    fixture.publish(1..=200).await;
    let gate = CancellationToken::new();
    let (handler, mut seen) = ScriptedHandler::new({
        let gate = gate.clone();
        move |_| {
            let gate = gate.clone();
            async move {
                gate.cancelled().await;
                Disposition::Ack
            }
        }
    });
    let worker = fixture.spawn_worker(
        handler,
        ConsumeOptions {
            in_flight_max: 50,
            batch_max: 50,
            paused: None,
        },
    );
    for _ in 1..=50 {
        seen.next().await;
    }
    worker.shutdown.cancel();
    let (other, mut seen_by_other) = ScriptedHandler::acks();
    let other = fixture.spawn_worker(other, ConsumeOptions::default());
    let counts = seen_by_other.posts(51..=200).await;
    assert!(
        counts.keys().all(|post| *post > 50),
        "running handlers keep their messages"
    );
    gate.cancel();
    worker.stop().await;
    fixture.wait_until_settled().await;
    other.stop().await;
    assert!(seen.rest().is_empty() && seen_by_other.rest().is_empty());
}

#[tokio::test]
async fn a_handler_beyond_the_shutdown_deadline_releases_its_message() {
    let fixture = Fixture::start_with(|config| config.consumers.timeline.drain_seconds = 1).await;
    fixture.publish([1]).await;
    let (handler, mut seen) = ScriptedHandler::new(|_| std::future::pending());
    let worker = fixture.spawn_worker(handler, ConsumeOptions::default());
    seen.next().await;
    worker.stop().await;
    let (handler, mut seen) = ScriptedHandler::acks();
    let worker = fixture.spawn_worker(handler, ConsumeOptions::default());
    assert_eq!(seen.next().await.attempt, 2);
    fixture.wait_until_settled().await;
    worker.stop().await;
}

#[tokio::test]
async fn options_out_of_bounds_are_refused() {
    let fixture = Fixture::start().await;
    for (in_flight_max, batch_max) in [(0, 1), (32_769, 1), (1, 0)] {
        let options = ConsumeOptions {
            in_flight_max,
            batch_max,
            paused: None,
        };
        let (handler, _seen) = ScriptedHandler::acks();
        let result = fixture
            .mesh
            .consume(fixture.consumer(), handler, options, CancellationToken::new())
            .await;
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Invalid);
    }
    assert_eq!(
        fixture
            .mesh
            .ack_floor(streams::TIMELINE, "timeline-normal")
            .await
            .unwrap(),
        0
    );
}
