//! Redriven messages that travel together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::TryStreamExt as _;
use herald_mesh::consumers::{self, Kind};
use herald_mesh::{ConsumeOptions, Delivery, ErrorKind, Redrive, Redriven, Settle, Subject, streams};
use herald_model::Lane;
use herald_model::time::Micros;
use prost::Message as _;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::harness::{Crew, Fixture, Script, Seen, chunk, post, until};
use crate::trace::spans;

const CONSUMER: &str = consumers::redrive(Kind::Timeline);

fn letter(number: u64) -> Redrive {
    Redrive {
        kind: Kind::Timeline,
        letter: number,
        round: 2,
        subject: Subject::TimelineDeliver(Lane::Low),
        sequence: 1_000 + number,
        published_at: Micros(1_790_230_470_084_404),
        payload: chunk(number).encode_to_vec().into(),
        trace_parent: Some(format!("00-{number:032x}-b7ad6b7169203331-01")),
        trace_state: None,
        id: format!("dlq/{number}/redrive/2"),
    }
}

async fn send(fixture: &Fixture, letters: impl IntoIterator<Item = u64>) -> u64 {
    let letters: Vec<_> = letters.into_iter().map(letter).collect();
    let letters: Vec<_> = letters.iter().collect();
    fixture.mesh.redrive_together(&letters).await.unwrap().sequence
}

/// Waits until the consumer is through with this message of REDRIVE.
async fn passed(fixture: &Fixture, sequence: u64) {
    until("the floor is there", async || {
        let floor = fixture.mesh.ack_floor(streams::REDRIVE, CONSUMER).await.unwrap();
        floor >= sequence
    })
    .await;
}

/// The letters that are in REDRIVE by themselves.
async fn apart(fixture: &Fixture) -> BTreeMap<u64, u64> {
    let apart = fixture.mesh.redriven_apart(Kind::Timeline, 0).await.unwrap();
    apart
        .into_iter()
        .map(|(redriven, sequence)| (redriven.letter, sequence))
        .collect()
}

/// Attempts by letter.
async fn attempts(seen: &mut Seen, count: usize) -> BTreeMap<u64, Vec<u64>> {
    let mut attempts: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for _ in 0..count {
        let delivery = seen.next().await;
        attempts
            .entry(post(&delivery))
            .or_default()
            .push(delivery.attempt);
    }
    attempts
}

#[tokio::test]
async fn each_comes_as_if_it_had_come_by_itself() {
    let fixture = Fixture::start().await;
    let first = send(&fixture, 1..=3).await;
    let again = {
        let letters = [letter(1), letter(2), letter(3)];
        let letters: Vec<_> = letters.iter().collect();
        fixture.mesh.redrive_together(&letters).await.unwrap()
    };
    assert_eq!((again.sequence, again.duplicate), (first, true));
    let others = send(&fixture, [1, 4]).await;
    assert_eq!(others, first + 1, "other letters are another batch");

    let (handler, mut seen) = Script::acks();
    let crew = Crew::new(&fixture, [(CONSUMER, handler)]);
    let mut traces = Vec::new();
    for _ in 0..3 {
        let delivery = seen.next().await;
        let number = post(&delivery);
        let redriven = Redriven {
            letter: number,
            round: 2,
        };
        assert_eq!(delivery.redrive, Some(redriven));
        assert_eq!(delivery.subject, Subject::TimelineDeliver(Lane::Low));
        assert_eq!((delivery.sequence, delivery.attempt), (1_000 + number, 1));
        assert_eq!(delivery.published_at, Micros(1_790_230_470_084_404));
        assert_eq!(delivery.id(), Some(format!("dlq/{number}/redrive/2").as_str()));
        assert_eq!(
            delivery.header("Herald-Type"),
            Some("herald.mesh.v1.TimelineChunk")
        );
        let trace = delivery.trace_parent().unwrap().split('-').nth(1).unwrap();
        traces.push((trace.to_owned(), format!("{number:032x}")));
    }
    passed(&fixture, others).await;
    crew.stop().await;
    assert_eq!(apart(&fixture).await, BTreeMap::new());

    // Each has a trace of its own, which leads to its first one.
    for (trace, first) in traces {
        let all = spans().0.lock().unwrap().clone();
        let span = all
            .iter()
            .find(|span| {
                span.name == "publish redrive.v1" && span.span_context.trace_id().to_string() == trace
            })
            .unwrap();
        let mut links = span.links.iter();
        assert!(links.any(|link| link.span_context.trace_id().to_string() == first));
    }
}

#[tokio::test]
async fn one_that_fails_goes_on_by_itself_after_its_delay() {
    let fixture = Fixture::start().await;
    let delay = Duration::from_millis(700);
    let (handler, mut seen) = Script::new(move |delivery: Delivery| {
        std::future::ready(match (post(&delivery), delivery.attempt) {
            (2, 1) => Settle::retry_after(delay, "provider wants a pause"),
            (3, 1) => Settle::fault("a corrupt row"),
            _ => Settle::Ack,
        })
    });
    let batch = send(&fixture, 1..=4).await;
    let before = Micros::now();
    let crew = Crew::new(&fixture, [(CONSUMER, handler)]);
    let attempts = attempts(&mut seen, 6).await;
    let expected = [(1, vec![1]), (2, vec![1, 2]), (3, vec![1, 2]), (4, vec![1])];
    assert_eq!(attempts, expected.into());
    assert!(Micros::now().since(before) >= delay);
    passed(&fixture, batch + 2).await;
    crew.stop().await;
    assert!(seen.rest().is_empty());
    assert_eq!(apart(&fixture).await.into_keys().collect::<Vec<_>>(), [2, 3]);
    assert!(fixture.advisories().await.is_empty());
}

#[tokio::test]
async fn one_that_is_given_up_is_not_tried_again_and_says_why() {
    let fixture = Fixture::start().await;
    let (handler, mut seen) = Script::new(|delivery: Delivery| {
        std::future::ready(match post(&delivery) {
            2 => Settle::term("device\nis gone"),
            _ => Settle::Ack,
        })
    });
    send(&fixture, 1..=3).await;
    let crew = Crew::new(&fixture, [(CONSUMER, handler)]);
    until("the advisory is stored", async || {
        !fixture.advisories().await.is_empty()
    })
    .await;
    let alone = apart(&fixture).await;
    passed(&fixture, alone[&2]).await;
    crew.stop().await;
    assert_eq!(alone.len(), 1);
    let [(subject, body)] = &fixture.advisories().await[..] else {
        panic!("one advisory");
    };
    assert_eq!(subject, "MSG_TERMINATED.REDRIVE.redrive-timeline");
    assert!(body.contains("\"reason\":\"device is gone\""), "{body}");
    assert!(body.contains(&format!("\"stream_seq\":{}", alone[&2])), "{body}");
    let all = attempts(&mut seen, 3).await;
    assert!(all.values().all(|attempts| *attempts == [1]), "{all:?}");
    assert!(seen.rest().is_empty());
}

#[tokio::test]
async fn attempts_go_on_counting_to_the_last() {
    let fixture = Fixture::start_with(|config| config.consumers.redrive.attempts_max = 3).await;
    let (handler, mut seen) = Script::new(|delivery: Delivery| {
        std::future::ready(match post(&delivery) {
            1 => Settle::retry("still ill"),
            _ => Settle::Ack,
        })
    });
    send(&fixture, 1..=2).await;
    let crew = Crew::new(&fixture, [(CONSUMER, handler)]);
    until("the advisory is stored", async || {
        !fixture.advisories().await.is_empty()
    })
    .await;
    crew.stop().await;
    let (_, body) = fixture.advisories().await.remove(0);
    assert!(body.contains("still ill (attempt 3 of as many)"), "{body}");
    let attempts = attempts(&mut seen, 4).await;
    assert_eq!(attempts, [(1, vec![1, 2, 3]), (2, vec![1])].into());
    assert!(seen.rest().is_empty());
}

/// Whoever had it may have died of it.
#[tokio::test]
async fn one_that_comes_again_comes_apart() {
    let fixture = Fixture::start().await;
    let batch = send(&fixture, 1..=3).await;
    let stream = fixture
        .jetstream()
        .await
        .get_stream(streams::REDRIVE)
        .await
        .unwrap();
    let consumer: async_nats::jetstream::consumer::PullConsumer =
        stream.get_consumer(CONSUMER).await.unwrap();
    let pulled = consumer.fetch().max_messages(1).messages().await.unwrap();
    let pulled: Vec<_> = pulled.try_collect().await.unwrap();
    pulled[0]
        .ack_with(async_nats::jetstream::AckKind::Nak(None))
        .await
        .unwrap();

    let (handler, mut seen) = Script::acks();
    let crew = Crew::new(&fixture, [(CONSUMER, handler)]);
    let attempts = attempts(&mut seen, 3).await;
    assert_eq!(attempts, [(1, vec![2]), (2, vec![2]), (3, vec![2])].into());
    passed(&fixture, batch + 3).await;
    crew.stop().await;
    assert!(seen.rest().is_empty());
    assert_eq!(apart(&fixture).await.len(), 3);
}

#[tokio::test]
async fn a_panic_in_one_leaves_the_others_alone() {
    let fixture = Fixture::start().await;
    let (handler, mut seen) = Script::new(async |delivery: Delivery| {
        assert!(post(&delivery) != 2 || delivery.attempt > 1, "on purpose");
        Settle::Ack
    });
    let batch = send(&fixture, 1..=3).await;
    let crew = Crew::new(&fixture, [(CONSUMER, handler)]);
    let attempts = attempts(&mut seen, 4).await;
    assert_eq!(attempts, [(1, vec![1]), (2, vec![1, 2]), (3, vec![1])].into());
    passed(&fixture, batch + 1).await;
    crew.stop().await;
}

#[tokio::test]
async fn no_more_than_in_flight_max_run_at_a_time_in_batches_either() {
    let fixture = Fixture::start().await;
    for batch in 0..3 {
        send(&fixture, batch * 20 + 1..=(batch + 1) * 20).await;
    }
    let gate = Arc::new(Semaphore::new(0));
    let (handler, mut seen, most) = Script::gated(&gate);
    let (mesh, stop) = (fixture.mesh.clone(), CancellationToken::new());
    let (spec, shutdown) = (fixture.topology.consumer(CONSUMER).unwrap().clone(), stop.clone());
    let options = ConsumeOptions {
        in_flight_max: 5,
        batch_max: 5,
        paused: None,
    };
    let work = tokio::spawn(async move { mesh.consume(&spec, handler, options, shutdown).await });
    // One permit waits for the next message, the others are a batch's.
    for _ in 0..4 {
        seen.next().await;
    }
    gate.add_permits(60);
    passed(&fixture, 3).await;
    stop.cancel();
    work.await.unwrap().unwrap();
    let most = most.load(Ordering::SeqCst);
    assert!((4..=5).contains(&most), "{most} ran at a time");
    assert_eq!(apart(&fixture).await.len(), 0);
}

#[tokio::test]
async fn what_is_no_batch_is_terminated() {
    let fixture = Fixture::start().await;
    let jetstream = fixture.jetstream().await;
    for garbage in ["", "\u{a}\u{ff}garbage"] {
        let sent = jetstream
            .publish("redrive.v1.timeline.batch", garbage.into())
            .await;
        sent.unwrap().await.unwrap();
    }
    let (handler, mut seen) = Script::acks();
    let crew = Crew::new(&fixture, [(CONSUMER, handler)]);
    until("both advisories are stored", async || {
        fixture.advisories().await.len() == 2
    })
    .await;
    crew.stop().await;
    let mut reasons: Vec<_> = fixture
        .advisories()
        .await
        .into_iter()
        .map(|(_, body)| body)
        .collect();
    reasons.sort_by_key(|body| body.contains("undecodable batch"));
    assert!(reasons[0].contains("a batch of nothing"), "{reasons:?}");
    assert!(reasons[1].contains("undecodable batch"), "{reasons:?}");
    assert!(seen.rest().is_empty());
    let stored = fixture.mesh.message(streams::REDRIVE, 1).await.unwrap().unwrap();
    assert!(!stored.is_batch() && stored.clone().apart().len() == 1);
    let error = fixture.mesh.redrive_apart(&stored).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

#[tokio::test]
async fn only_letters_of_one_kind_and_not_too_many_go_together() {
    let fixture = Fixture::start().await;
    let other = Redrive {
        kind: Kind::Push,
        ..letter(2)
    };
    let family = Redrive {
        subject: Subject::Terminated,
        ..letter(2)
    };
    let many: Vec<_> = (1..=65).map(letter).collect();
    let one = letter(1);
    for letters in [
        vec![],
        vec![&one, &other],
        vec![&one, &family],
        many.iter().collect(),
    ] {
        let error = fixture.mesh.redrive_together(&letters).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    assert_eq!(fixture.mesh.last_sequence(streams::REDRIVE).await.unwrap(), 0);
}

/// Nothing is lost while there is no room for those that leave it: the batch itself comes again, and when it is given up its
/// messages can still be sent.
#[tokio::test]
async fn a_batch_that_can_not_come_apart_is_not_acknowledged() {
    let fixture = Fixture::start_with(|config| config.consumers.redrive.attempts_max = 2).await;
    let batch = send(&fixture, 1..=2).await;
    let jetstream = fixture.jetstream().await;
    let mut stream = jetstream.get_stream(streams::REDRIVE).await.unwrap();
    let info = stream.info().await.unwrap().clone();
    let mut full = info.config.clone();
    full.max_bytes = i64::try_from(info.state.bytes).unwrap();
    jetstream.update_stream(&full).await.unwrap();

    let (handler, mut seen) = Script::new(async |delivery: Delivery| {
        if delivery.attempt == 1 {
            Settle::retry("ill")
        } else {
            Settle::Ack
        }
    });
    let crew = Crew::new(&fixture, [(CONSUMER, handler)]);
    until("the advisory is stored", async || {
        !fixture.advisories().await.is_empty()
    })
    .await;
    let (_, body) = fixture.advisories().await.remove(0);
    assert!(body.contains(&format!("\"stream_seq\":{batch}")), "{body}");
    assert!(apart(&fixture).await.is_empty());

    jetstream.update_stream(&info.config).await.unwrap();
    let message = fixture
        .mesh
        .message(streams::REDRIVE, batch)
        .await
        .unwrap()
        .unwrap();
    assert!(message.is_batch());
    fixture.mesh.redrive_apart(&message).await.unwrap();
    // What was given up twice, because its advisory came twice, is sent once.
    fixture.mesh.redrive_apart(&message).await.unwrap();
    passed(&fixture, batch + 2).await;
    crew.stop().await;
    let attempts = attempts(&mut seen, 4).await;
    assert_eq!(attempts, [(1, vec![1, 2]), (2, vec![1, 2])].into());
    assert!(seen.rest().is_empty());
}
