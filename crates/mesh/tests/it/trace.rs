use std::sync::{Arc, LazyLock, Mutex};

use herald_mesh::{ConsumeOptions, Disposition, streams};
use herald_trace::SpanIds;
use opentelemetry::global;
use opentelemetry::trace::{SpanId, SpanKind, Status, TraceContextExt as _, TracerProvider as _};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use tracing::Instrument as _;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::harness::{Fixture, SUBJECT, ScriptedHandler, chunk, until};

#[derive(Debug, Clone, Default)]
pub(crate) struct Spans(pub(crate) Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Spans {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

/// Spans of all tests. Every test installs the subscriber before its first span: a subscriber installed later can miss
/// a span whose callsite another thread registers at that moment.
pub(crate) fn spans() -> &'static Spans {
    static SPANS: LazyLock<Spans> = LazyLock::new(|| {
        global::set_text_map_propagator(TraceContextPropagator::new());
        let spans = Spans::default();
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(spans.clone())
            .with_id_generator(SpanIds::default())
            .build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer)).unwrap();
        spans
    });
    &SPANS
}

/// The spans that a span is linked to.
pub(crate) fn linked(span: &SpanData) -> Vec<SpanId> {
    span.links
        .iter()
        .map(|link| link.span_context.span_id())
        .collect()
}

#[tokio::test]
async fn a_trace_continues_from_the_publisher_to_the_handler() {
    let fixture = Fixture::start().await;
    let (handler, mut seen) = ScriptedHandler::new(|delivery| async move {
        if delivery.attempt == 1 {
            return Disposition::retry("not yet");
        }
        tracing::info_span!("inside").in_scope(|| ());
        Disposition::Ack
    });
    let worker = fixture.spawn_worker(handler, ConsumeOptions::default());

    let root = tracing::info_span!("root");
    let trace_id = root.context().span().span_context().trace_id();
    fixture
        .mesh
        .publish(SUBJECT, Some("id"), &chunk(1))
        .instrument(root.clone())
        .await
        .unwrap();
    drop(root);
    seen.next().await;
    seen.next().await;
    fixture.wait_until_settled().await;
    worker.stop().await;

    let spans_of_trace = || {
        let all = spans().0.lock().unwrap().clone();
        all.into_iter()
            .filter(|span| span.span_context.trace_id() == trace_id)
            .collect::<Vec<_>>()
    };
    until("all five spans ended", async || spans_of_trace().len() >= 5).await;
    let all = spans_of_trace();
    let find = |name: &str| {
        all.iter()
            .find(|span| span.name == name && span.status == Status::Unset)
            .unwrap_or_else(|| panic!("{name} in {all:?}"))
    };
    let (root, publish) = (find("root"), find("publish timeline.v1.deliver"));
    let failed = all
        .iter()
        .find(|span| matches!(span.status, Status::Error { .. }))
        .expect("the first attempt");
    assert_eq!(failed.status, Status::error("not yet"));
    assert_eq!(failed.parent_span_id, publish.span_context.span_id());
    let (process, inside) = (find("process timeline.v1.deliver"), find("inside"));
    assert_eq!(publish.parent_span_id, root.span_context.span_id());
    assert_eq!(publish.span_kind, SpanKind::Producer);
    assert_eq!(process.parent_span_id, publish.span_context.span_id());
    assert!(process.parent_span_is_remote);
    assert_eq!(process.span_kind, SpanKind::Consumer);
    assert_eq!(inside.parent_span_id, process.span_context.span_id());
    assert_eq!(linked(process), [failed.span_context.span_id()]);
    assert!(linked(failed).is_empty());

    let attributes: Vec<_> = process
        .attributes
        .iter()
        .map(|a| (a.key.as_str(), a.value.as_str().into_owned()))
        .collect();
    for wanted in [
        ("messaging.system", "nats"),
        ("messaging.operation.name", "process"),
        ("messaging.destination.name", "timeline.v1.deliver.normal"),
        ("messaging.consumer.group.name", "timeline-normal"),
    ] {
        assert!(
            attributes.contains(&(wanted.0, wanted.1.to_owned())),
            "{wanted:?} in {attributes:?}"
        );
    }

    // The message has no other headers.
    let stored = fixture
        .jetstream()
        .await
        .get_stream(streams::TIMELINE)
        .await
        .unwrap()
        .direct_get(1)
        .await
        .unwrap();
    let mut names: Vec<_> = stored.headers.iter().map(|(name, _)| name.to_string()).collect();
    names.retain(|name| {
        !["Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp"].contains(&name.as_str())
    });
    names.sort();
    assert_eq!(names, ["Herald-Type", "Nats-Msg-Id", "traceparent"]);
}

#[tokio::test]
async fn a_publish_for_several_spans_is_a_child_of_the_first_and_linked_to_the_others() {
    let fixture = Fixture::start().await;
    let parents = ["first", "second", "third"].map(|name| tracing::info_span!("work", otel.name = name));
    let [first, second, third] = parents
        .each_ref()
        .map(|span| span.context().span().span_context().trace_id());
    fixture
        .mesh
        .publish_with_links(SUBJECT, Some("for three"), &chunk(1), &parents)
        .await
        .unwrap();
    fixture
        .mesh
        .publish_with_links(SUBJECT, Some("for none"), &chunk(2), &[])
        .await
        .unwrap();
    let publish = || {
        let all = spans().0.lock().unwrap().clone();
        all.into_iter()
            .find(|span| span.name == "publish timeline.v1.deliver" && span.span_context.trace_id() == first)
    };
    until("the publish ended", async || publish().is_some()).await;
    let links = publish().unwrap().links;
    let linked: Vec<_> = links.iter().map(|link| link.span_context.trace_id()).collect();
    assert_eq!(linked, [second, third]);
}
