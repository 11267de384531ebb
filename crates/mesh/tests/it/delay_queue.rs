use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::stream;
use herald_mesh::{
    ConsumeOptions, ConsumerSpec, Delivery, Disposition, Requeuer, Subject, TopologyConfig, Workers,
    consumers, streams,
};
use herald_model::Lane;
use herald_proto::mesh_v1::PushChunk;
use opentelemetry_sdk::trace::SpanData;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::harness::{Fixture, RunningWorkers, ScriptedHandler, until};
use crate::trace::spans;

const PUSH: Subject = Subject::PushDeliver(Lane::Low);
const CONSUMER: &str = "push-low";

/// Delays of more than 100 ms use the delay queue.
fn short_hold(config: &mut TopologyConfig) {
    config.consumers.push.hold_ms_max = 100;
}

async fn publish(fixture: &Fixture, id: Option<&str>) {
    let chunk = PushChunk {
        post_id: 5,
        ..PushChunk::default()
    };
    fixture.mesh.publish(PUSH, id, &chunk).await.unwrap();
}

/// Runs the requeuer.
fn run_requeuer(fixture: &Fixture) -> RunningWorkers {
    RunningWorkers::new(
        fixture,
        [(consumers::LATER, Arc::new(Requeuer::new(fixture.mesh.clone())))],
    )
}

async fn delayed_count(fixture: &Fixture) -> u64 {
    let lag = fixture.mesh.lag(&fixture.topology).await.unwrap();
    let later = lag.iter().find(|lag| lag.stream == streams::LATER).unwrap();
    later.message_count
}

async fn outstanding_count(fixture: &Fixture) -> u64 {
    let lag = fixture.mesh.lag(&fixture.topology).await.unwrap();
    let push = lag.iter().flat_map(|lag| &lag.consumers);
    push.filter(|lag| lag.consumer == CONSUMER)
        .map(herald_mesh::ConsumerLag::outstanding_count)
        .sum()
}

#[tokio::test]
async fn a_long_delay_occupies_no_ack_pending_and_continues_the_attempt_count() {
    let fixture = Fixture::start_with(short_hold).await;
    publish(&fixture, Some("5/push/a")).await;
    let wait = Duration::from_millis(1_500);
    let (handler, mut seen) = ScriptedHandler::new(move |delivery| async move {
        match delivery.attempt {
            1 => Disposition::retry("shortly"),
            2 | 3 => Disposition::retry_after(wait, "the provider says so"),
            _ => Disposition::Ack,
        }
    });
    let workers = RunningWorkers::new(&fixture, [(CONSUMER, handler)]);
    let requeuer = run_requeuer(&fixture);
    let first = seen.next().await;
    assert_eq!((first.attempt, first.sequence), (1, 1));
    let mut traces = vec![trace_of(&first)];
    let mut last = seen.next().await;
    assert_eq!((last.attempt, last.sequence), (2, 1));
    for attempt in [3, 4] {
        let since = Instant::now();
        until("the message is in the delay queue only", async || {
            (delayed_count(&fixture).await, outstanding_count(&fixture).await) == (1, 0)
        })
        .await;
        last = seen.next().await;
        let took = since.elapsed();
        assert!(took > wait.mul_f64(0.8) && took < wait.mul_f64(2.0), "{took:?}");
        assert_eq!((last.attempt, last.sequence), (attempt, attempt - 1));
        assert_eq!(last.subject, PUSH);
        assert_eq!(
            (last.published_at, &last.payload),
            (first.published_at, &first.payload)
        );
        assert_eq!(last.header("Herald-Type"), first.header("Herald-Type"));
        assert_eq!(
            last.id(),
            Some(format!("5/push/a/later/{}", attempt - 1).as_str())
        );
        // Each copy starts a trace, which is linked to the publish into the queue, in the trace before, and to the first.
        let trace = trace_of(&last);
        let requeued = || {
            spans_of(&trace)
                .into_iter()
                .find(|span| span.name == "process later.v1")
        };
        until("the span of the requeuer ended", async || requeued().is_some()).await;
        let links = requeued().unwrap().links;
        let links: Vec<_> = links
            .iter()
            .map(|link| link.span_context.trace_id().to_string())
            .collect();
        assert_eq!(links, [traces.last().unwrap().clone(), traces[0].clone()]);
        assert!(!traces.contains(&trace));
        traces.push(trace);
    }
    until("no message is left", async || {
        (delayed_count(&fixture).await, outstanding_count(&fixture).await) == (0, 0)
    })
    .await;
    workers.stop().await;
    requeuer.stop().await;
    assert!(seen.rest().is_empty());
    assert_eq!(fixture.mesh.last_sequence(streams::PUSH).await.unwrap(), 3);
    // The schedule's headers are removed.
    let stored = fixture.mesh.message(streams::PUSH, 3).await.unwrap().unwrap();
    let mut names: Vec<_> = stored.headers().map(|(name, _)| name).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "Herald-Attempts",
            "Herald-First-Trace-Parent",
            "Herald-Id",
            "Herald-Published-At",
            "Herald-Type",
            "Nats-Msg-Id",
            "traceparent"
        ]
    );
}

#[tokio::test]
async fn attempts_count_over_all_copies() {
    let fixture = Fixture::start_with(|config| {
        short_hold(config);
        config.consumers.push.attempts_max = 3;
    })
    .await;
    publish(&fixture, None).await;
    let (handler, mut seen) =
        ScriptedHandler::new(async |_| Disposition::retry_after(Duration::from_millis(200), "always"));
    let workers = RunningWorkers::new(&fixture, [(CONSUMER, handler)]);
    let requeuer = run_requeuer(&fixture);
    until("the message is terminated", async || {
        fixture.advisories().await.len() == 1
    })
    .await;
    workers.stop().await;
    requeuer.stop().await;
    let attempts: Vec<_> = seen
        .rest()
        .iter()
        .map(|delivery| (delivery.attempt, delivery.is_last_attempt()))
        .collect();
    assert_eq!(attempts, [(1, false), (2, false), (3, true)]);
    let (subject, body) = fixture.advisories().await.pop().unwrap();
    assert_eq!(subject, "MSG_TERMINATED.PUSH.push-low");
    assert!(body.contains("always (attempt 3 of 3)"), "{body}");
}

#[tokio::test]
async fn a_delayed_message_survives_a_crash_of_the_server() {
    let mut fixture = Fixture::start_with(|config| {
        short_hold(config);
        config.consumers = config.consumers.each(|policy| policy.ack_wait_seconds = 1);
    })
    .await;
    publish(&fixture, None).await;
    let (handler, mut seen) = ScriptedHandler::new(|delivery| async move {
        match delivery.attempt {
            1 => Disposition::retry_after(Duration::from_secs(2), "later"),
            _ => Disposition::Ack,
        }
    });
    let workers = RunningWorkers::new(&fixture, [(CONSUMER, handler)]);
    let requeuer = run_requeuer(&fixture);
    seen.next().await;
    until("the message is in the delay queue", async || {
        delayed_count(&fixture).await == 1
    })
    .await;
    fixture.server.kill().await.unwrap();
    fixture.server.restart().await.unwrap();
    // The original may be redelivered: its acknowledgement may not have been fsynced.
    while seen.next().await.sequence != 2 {}
    until("no message is left", async || {
        fixture.mesh.is_connected()
            && (delayed_count(&fixture).await, outstanding_count(&fixture).await) == (0, 0)
    })
    .await;
    workers.stop().await;
    requeuer.stop().await;
}

/// Runs a worker whose first attempt returns a delay of a second; returns the number of messages stored in LATER.
async fn stored_in_delay_queue(fixture: &Fixture, consumer: ConsumerSpec) -> u64 {
    publish(fixture, None).await;
    let (handler, mut seen) = ScriptedHandler::new(|delivery| async move {
        match delivery.attempt {
            1 => Disposition::retry_after(Duration::from_secs(1), "later"),
            _ => Disposition::Ack,
        }
    });
    let shutdown = CancellationToken::new();
    let (mesh, stop) = (fixture.mesh.clone(), shutdown.clone());
    let worker = tokio::spawn(async move {
        let options = ConsumeOptions::default();
        mesh.consume(&consumer, handler, options, stop).await
    });
    seen.next().await;
    let since = Instant::now();
    let again = seen.next().await;
    assert!(
        since.elapsed() > Duration::from_millis(800),
        "the message was delayed"
    );
    assert_eq!(again.attempt, 2);
    shutdown.cancel();
    worker.await.unwrap().unwrap();
    fixture.mesh.last_sequence(streams::LATER).await.unwrap()
}

#[tokio::test]
async fn a_full_delay_queue_holds_the_message() {
    let fixture = Fixture::start_with(short_hold).await;
    let mut consumer = fixture.topology.consumer(CONSUMER).unwrap().clone();
    consumer.delay_limits.as_mut().unwrap().bytes_max = 0;
    assert_eq!(stored_in_delay_queue(&fixture, consumer).await, 0);
}

#[tokio::test]
async fn a_stream_without_schedules_is_not_used_until_ensure_enables_them() {
    let fixture = Fixture::start_with(short_hold).await;
    let jetstream = fixture.jetstream().await;
    let mut config = jetstream
        .get_stream(streams::LATER)
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    assert!(config.allow_message_schedules);
    assert_eq!(config.retention, stream::RetentionPolicy::WorkQueue);
    jetstream.delete_stream(streams::LATER).await.unwrap();
    let consumer = fixture.topology.consumer(CONSUMER).unwrap().clone();
    // As created by a server without schedules.
    config.allow_message_schedules = false;
    config.allow_rollup = false;
    jetstream.create_stream(config).await.unwrap();
    assert_eq!(stored_in_delay_queue(&fixture, consumer).await, 0);
    // Existing messages don't prevent the update.
    jetstream
        .publish("later.v1.due.PUSH.push-low", "x".into())
        .await
        .unwrap()
        .await
        .unwrap();
    fixture.mesh.ensure(&fixture.topology).await.unwrap();
    let stream = jetstream.get_stream(streams::LATER).await.unwrap();
    assert!(stream.cached_info().config.allow_message_schedules);
}

#[tokio::test]
async fn a_due_message_without_origin_headers_is_terminated() {
    let fixture = Fixture::start().await;
    fixture
        .jetstream()
        .await
        .publish("later.v1.due.PUSH.push-low", "x".into())
        .await
        .unwrap()
        .await
        .unwrap();
    let requeuer = run_requeuer(&fixture);
    until("the advisory is stored", async || {
        fixture.advisories().await.len() == 1
    })
    .await;
    requeuer.stop().await;
    let (subject, body) = fixture.advisories().await.pop().unwrap();
    assert_eq!(subject, "MSG_TERMINATED.LATER.later");
    assert!(body.contains("missing or malformed origin headers"), "{body}");
}

#[tokio::test]
async fn a_requeuer_drains_at_shutdown() {
    let fixture = Fixture::start().await;
    let shutdown = CancellationToken::new();
    let mut workers = Workers::new(
        fixture.mesh.clone(),
        Arc::new(fixture.topology.clone()),
        &shutdown,
    );
    let handler = Arc::new(Requeuer::new(fixture.mesh.clone()));
    workers
        .spawn(consumers::LATER, handler, ConsumeOptions::default())
        .unwrap();
    shutdown.cancel();
    workers.join().await.unwrap();
}

/// The trace of a delivery.
fn trace_of(delivery: &Delivery) -> String {
    let parent = delivery.trace_parent().expect("the publisher records its trace");
    parent.split('-').nth(1).expect("a W3C trace context").to_owned()
}

/// The ended spans of a trace.
fn spans_of(trace: &str) -> Vec<SpanData> {
    let all = spans().0.lock().unwrap().clone();
    all.into_iter()
        .filter(|span| span.span_context.trace_id().to_string() == trace)
        .collect()
}
