use std::time::Duration;

use herald_mesh::consumers::{self, ConsumerKind};
use herald_mesh::{Disposition, ErrorKind, Redrive, Redriven, Subject, streams};
use herald_model::time::Timestamp;
use herald_model::{Channel, Lane};
use opentelemetry::trace::TraceContextExt as _;
use prost::Message as _;
use tracing::Instrument as _;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::harness::{Deliveries, Fixture, RunningWorkers, ScriptedHandler, chunk, until};
use crate::trace::spans;

const FIRST_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn dead_letter(kind: ConsumerKind, round: u32) -> Redrive {
    Redrive {
        kind,
        dead_letter: 12,
        round,
        subject: Subject::TimelineDeliver(Lane::Low),
        sequence: 77,
        published_at: Timestamp(1_790_230_470_084_404),
        payload: chunk(5).encode_to_vec().into(),
        trace_parent: Some(format!("00-{FIRST_TRACE}-b7ad6b7169203331-01")),
        trace_state: Some("a=b".into()),
        id: format!("dlq/12/redrive/{round}"),
    }
}

#[tokio::test]
async fn a_redriven_message_reaches_only_its_kind_with_its_original_subject_and_sequence() {
    let fixture = Fixture::start().await;
    let mut all: Vec<(ConsumerKind, Deliveries)> = Vec::new();
    let workers = RunningWorkers::new(
        &fixture,
        ConsumerKind::ALL.map(|kind| {
            let (handler, seen) = ScriptedHandler::acks();
            all.push((kind, seen));
            (consumers::redrive(kind), handler)
        }),
    );
    let operator = tracing::info_span!("operator");
    let operators_trace = operator.context().span().span_context().trace_id();
    let first = async {
        fixture
            .mesh
            .redrive(&dead_letter(ConsumerKind::Timeline, 1))
            .await
            .unwrap()
    };
    let first = first.instrument(operator).await;
    assert!(!first.duplicate);
    let again = fixture
        .mesh
        .redrive(&dead_letter(ConsumerKind::Timeline, 1))
        .await
        .unwrap();
    assert_eq!((again.sequence, again.duplicate), (first.sequence, true));
    let second = fixture
        .mesh
        .redrive(&dead_letter(ConsumerKind::Timeline, 2))
        .await
        .unwrap();
    assert!(!second.duplicate, "each redrive is a separate message");

    let (_, seen) = all
        .iter_mut()
        .find(|(kind, _)| *kind == ConsumerKind::Timeline)
        .unwrap();
    let (one, two) = (seen.next().await, seen.next().await);
    for (delivery, round) in [(&one, 1), (&two, 2)] {
        assert_eq!(
            delivery.redrive,
            Some(Redriven {
                dead_letter: 12,
                round
            })
        );
        assert_eq!(delivery.subject, Subject::TimelineDeliver(Lane::Low));
        assert_eq!((delivery.sequence, delivery.attempt), (77, 1));
        assert_eq!(delivery.published_at, Timestamp(1_790_230_470_084_404));
        assert_eq!(delivery.payload, chunk(5).encode_to_vec());
        assert_eq!(delivery.id(), Some(format!("dlq/12/redrive/{round}").as_str()));
        assert_eq!(
            delivery.header("Herald-Type"),
            Some("herald.mesh.v1.TimelineChunk")
        );
    }

    // A redrive starts a new trace, linked to the operator's and to the first publish.
    let trace = one.trace_parent().unwrap().split('-').nth(1).unwrap().to_owned();
    assert!(trace != FIRST_TRACE && trace != operators_trace.to_string());
    let redrive = || {
        let all = spans().0.lock().unwrap().clone();
        all.into_iter().find(|span| {
            span.name == "publish redrive.v1" && span.span_context.trace_id().to_string() == trace
        })
    };
    until("the span of the redrive ended", async || redrive().is_some()).await;
    let links: Vec<_> = redrive()
        .unwrap()
        .links
        .iter()
        .map(|link| link.span_context.trace_id().to_string())
        .collect();
    assert_eq!(links, [FIRST_TRACE.to_owned(), operators_trace.to_string()]);

    until("the last redrive is acknowledged", async || {
        fixture
            .mesh
            .ack_floor(streams::REDRIVE, "redrive-timeline")
            .await
            .unwrap()
            == second.sequence
    })
    .await;
    workers.stop().await;
    assert!(all.iter_mut().all(|(_, seen)| seen.rest().is_empty()));
}

#[tokio::test]
async fn a_redriven_message_that_fails_again_identifies_its_dead_letter() {
    let fixture = Fixture::start_with(|config| config.consumers.redrive.attempts_max = 2).await;
    let published = fixture
        .mesh
        .redrive(&dead_letter(ConsumerKind::Push, 3))
        .await
        .unwrap();
    let (handler, _seen) = ScriptedHandler::new(async |_| Disposition::retry("still failing"));
    let workers = RunningWorkers::new(&fixture, [(consumers::redrive(ConsumerKind::Push), handler)]);
    until("the advisory is stored", async || {
        fixture.advisories().await.len() == 1
    })
    .await;
    workers.stop().await;
    let (subject, body) = fixture.advisories().await.pop().unwrap();
    assert_eq!(subject, "MSG_TERMINATED.REDRIVE.redrive-push");
    assert!(body.contains("still failing (attempt 2 of 2)"), "{body}");

    let stored = fixture
        .mesh
        .message(streams::REDRIVE, published.sequence)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        Redriven::parse(stored.header("Herald-Redrive").unwrap()),
        Some(Redriven {
            dead_letter: 12,
            round: 3
        })
    );
    let mut headers: Vec<_> = stored.headers().collect();
    headers.retain(|(name, _)| !["traceparent", "tracestate"].contains(name));
    headers.sort_unstable();
    assert_eq!(
        headers,
        [
            ("Herald-Published-At", "1790230470084404"),
            ("Herald-Redrive", "12/3"),
            ("Herald-Sequence", "77"),
            ("Herald-Subject", "timeline.v1.deliver.low"),
            ("Herald-Type", "herald.mesh.v1.TimelineChunk"),
            ("Nats-Msg-Id", "dlq/12/redrive/3"),
        ]
    );
}

#[tokio::test]
async fn a_redriven_message_without_origin_headers_is_terminated() {
    let fixture = Fixture::start().await;
    let jetstream = fixture.jetstream().await;
    jetstream
        .publish("redrive.v1.push", "x".into())
        .await
        .unwrap()
        .await
        .unwrap();
    let (handler, mut seen) = ScriptedHandler::acks();
    let workers = RunningWorkers::new(&fixture, [(consumers::redrive(ConsumerKind::Push), handler)]);
    until("the advisory is stored", async || {
        fixture.advisories().await.len() == 1
    })
    .await;
    workers.stop().await;
    let (_, body) = fixture.advisories().await.pop().unwrap();
    assert!(
        body.contains("missing or malformed origin headers on redrive.v1.push"),
        "{body}"
    );
    assert!(seen.rest().is_empty());
}

#[tokio::test]
async fn dead_letters_are_stored_once_and_read_by_their_consumer() {
    let fixture = Fixture::start().await;
    let publish = async || {
        let id = "TIMELINE/timeline-low/7";
        fixture
            .mesh
            .publish_dead_letter(streams::TIMELINE, "timeline-low", id, &chunk(7))
            .await
            .unwrap()
    };
    let (first, again) = (publish().await, publish().await);
    assert_eq!((first.sequence, again.sequence), (1, 1));
    assert!(!first.duplicate && again.duplicate);

    let (handler, mut seen) = ScriptedHandler::acks();
    let workers = RunningWorkers::new(&fixture, [(consumers::DEAD_LETTERS, handler)]);
    let delivery = seen.next().await;
    assert_eq!((delivery.subject, delivery.sequence), (Subject::DeadLetter, 1));
    assert_eq!(delivery.header("Herald-Type"), Some("herald.mesh.v1.DlqEntry"));
    assert_eq!(delivery.id(), Some("TIMELINE/timeline-low/7"));
    workers.stop().await;
    let stored = fixture.mesh.message(streams::DLQ, 1).await.unwrap().unwrap();
    assert_eq!(stored.subject, "dlq.v1.TIMELINE.timeline-low");

    for (stream, consumer) in [("TIMELINE", ""), ("a.b", "c"), ("a", "*"), ("a b", "c")] {
        let error = fixture
            .mesh
            .publish_dead_letter(stream, consumer, "id", &chunk(7))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
}

#[tokio::test]
async fn a_wildcard_subject_is_refused() {
    let fixture = Fixture::start().await;
    let error = fixture
        .mesh
        .publish(Subject::DeadLetter, None, &chunk(1))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let redrive = Redrive {
        subject: Subject::Terminated,
        ..dead_letter(ConsumerKind::Push, 1)
    };
    let error = fixture.mesh.redrive(&redrive).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    // Events can be redriven too.
    let redrive = Redrive {
        subject: Subject::Settled(Channel::Push),
        ..dead_letter(ConsumerKind::AnalyticsEvents, 1)
    };
    fixture.mesh.redrive(&redrive).await.unwrap();
}

/// Advisories have no headers.
#[tokio::test]
async fn advisories_of_both_kinds_reach_their_consumer() {
    let fixture = Fixture::start_with(|config| {
        config.consumers.timeline.attempts_max = 2;
        config.consumers.timeline.ack_wait_seconds = 1;
    })
    .await;
    fixture.publish([1, 2]).await;
    // A plain client: it terminates the first message, and the server gives the second one no further attempt.
    let stream = fixture
        .jetstream()
        .await
        .get_stream(streams::TIMELINE)
        .await
        .unwrap();
    let consumer: async_nats::jetstream::consumer::PullConsumer =
        stream.get_consumer("timeline-normal").await.unwrap();
    let pull = async || {
        use futures::TryStreamExt as _;
        // Older servers publish the advisory only at a pull that waits.
        let batch = consumer
            .batch()
            .max_messages(2)
            .expires(Duration::from_millis(200));
        let batch = batch.messages().await.unwrap();
        batch.try_collect::<Vec<_>>().await.unwrap()
    };
    for message in pull().await {
        let first = message.info().unwrap().stream_sequence == 1;
        let kind = if first {
            async_nats::jetstream::AckKind::Term
        } else {
            async_nats::jetstream::AckKind::Nak(None)
        };
        message.ack_with(kind).await.unwrap();
    }
    until("the second message was redelivered", async || {
        let again = pull().await;
        for message in &again {
            message
                .ack_with(async_nats::jetstream::AckKind::Nak(None))
                .await
                .unwrap();
        }
        !again.is_empty()
    })
    .await;
    until("both advisories are stored", async || {
        pull().await;
        fixture.advisories().await.len() == 2
    })
    .await;

    let (handler, mut seen) = ScriptedHandler::acks();
    let workers = RunningWorkers::new(&fixture, [(consumers::DEADLETTER, handler)]);
    let mut bodies = [seen.next().await, seen.next().await].map(|delivery| {
        assert!(delivery.id().is_none() && delivery.trace_parent().is_none());
        (
            delivery.subject,
            String::from_utf8(delivery.payload.to_vec()).unwrap(),
        )
    });
    bodies.sort();
    let [(first, max), (second, terminated)] = bodies;
    assert_eq!((first, second), (Subject::MaxDeliveries, Subject::Terminated));
    assert!(
        max.contains("\"type\":\"io.nats.jetstream.advisory.v1.max_deliver\"")
            && max.contains("\"stream_seq\":2"),
        "{max}"
    );
    assert!(
        terminated.contains("\"type\":\"io.nats.jetstream.advisory.v1.terminated\"")
            && terminated.contains("\"stream_seq\":1"),
        "{terminated}"
    );
    until("both advisories are acknowledged", async || {
        fixture
            .mesh
            .ack_floor(streams::ADVISORIES, consumers::DEADLETTER)
            .await
            .unwrap()
            == 2
    })
    .await;
    workers.stop().await;
    assert_eq!(
        fixture.advisories().await.len(),
        2,
        "no advisory message is terminated"
    );
}
