//! W3C Trace Context in NATS headers, and the spans of publishes and handlers.

use async_nats::{HeaderMap, HeaderValue};
use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry::{Context, global};
use tracing::{Span, field};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::Subject;

/// Span of one publish to the subject `to`, a child of the current span.
pub(crate) fn publish_span(subject: Subject, to: &str) -> Span {
    tracing::info_span!(
        "publish",
        otel.name = publish_name(subject),
        otel.kind = "producer",
        otel.status_code = field::Empty,
        otel.status_description = field::Empty,
        messaging.system = "nats",
        messaging.operation.name = "publish",
        messaging.operation.type = "send",
        messaging.destination.name = to,
    )
}

/// Span of one publish that belongs to several spans: a child of the first, linked to the others.
pub(crate) fn publish_span_for(subject: Subject, to: &str, spans: &[Span]) -> Span {
    let Some((first, others)) = spans.split_first() else {
        return publish_span(subject, to);
    };
    let span = first.in_scope(|| publish_span(subject, to));
    if !span.is_disabled() {
        for other in others {
            add_link(&span, &other.context());
        }
    }
    span
}

/// Span of a redrive: starts a new trace, linked to the current span and to the message's first publish.
pub(crate) fn redrive_span(to: &str, first: &HeaderMap) -> Span {
    let span = tracing::info_span!(
        parent: None,
        "publish",
        otel.name = "publish redrive.v1",
        otel.kind = "producer",
        otel.status_code = field::Empty,
        otel.status_description = field::Empty,
        messaging.system = "nats",
        messaging.operation.name = "publish",
        messaging.operation.type = "send",
        messaging.destination.name = to,
    );
    if !span.is_disabled() {
        add_link(&span, &Span::current().context());
        add_link(&span, &extract(first));
    }
    span
}

/// Links a span to the span of a context, if there is one.
fn add_link(span: &Span, to: &Context) {
    let to = to.span().span_context().clone();
    if to.is_valid() {
        span.add_link(to);
    }
}

/// Span of one handler call, a child of the publish span in the headers.
pub(crate) fn process_span(
    subject: Subject,
    to: &str,
    consumer: &str,
    attempt: u64,
    headers: Option<&HeaderMap>,
) -> Span {
    let span = tracing::info_span!(
        parent: None,
        "process",
        otel.name = process_name(subject),
        otel.kind = "consumer",
        otel.status_code = field::Empty,
        otel.status_description = field::Empty,
        messaging.system = "nats",
        messaging.operation.name = "process",
        messaging.operation.type = "process",
        messaging.destination.name = to,
        messaging.consumer.group.name = consumer,
        messaging.nats.delivery_attempt = attempt,
    );
    if !span.is_disabled()
        && let Some(headers) = headers
    {
        // Fails without an OpenTelemetry layer; then there is no parent to set.
        let _ = span.set_parent(extract(headers));
    }
    span
}

/// Sets the status of a span to error.
pub(crate) fn set_error(span: &Span, message: &str) {
    span.record("otel.status_code", "error");
    span.record("otel.status_description", message);
}

/// Writes the span's context into the headers; the current span's if the span is filtered out.
pub(crate) fn inject(span: &Span, headers: &mut HeaderMap) {
    let context = if span.is_disabled() {
        Span::current().context()
    } else {
        span.context()
    };
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut HeadersMut(headers));
    });
}

fn extract(headers: &HeaderMap) -> Context {
    global::get_text_map_propagator(|propagator| propagator.extract(&Headers(headers)))
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(HeaderValue::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_ref()).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        // Skip an empty tracestate.
        if !value.is_empty() {
            self.0.insert(key, value);
        }
    }
}

/// Operation and destination, without the lane: span names have low cardinality.
const fn publish_name(subject: Subject) -> &'static str {
    match subject {
        Subject::PostCreated(_) => "publish post.v1.created",
        Subject::PostDeleted(_) => "publish post.v1.deleted",
        Subject::Slice(_) => "publish fanout.v1.slice",
        Subject::TimelineDeliver(_) => "publish timeline.v1.deliver",
        Subject::TimelineBackfill(_) => "publish timeline.v1.backfill",
        Subject::PushDeliver(_) => "publish push.v1.deliver",
        Subject::Settled(_) => "publish event.v1.settled",
        Subject::LiveTimeline => "publish live.v1.timeline",
        Subject::MaxDeliveries => "publish max deliveries advisory",
        Subject::Terminated => "publish terminated advisory",
        Subject::DeadLetter => "publish dlq.v1",
        Subject::Due => "publish later.v1",
    }
}

/// Operation and destination, without the lane: span names have low cardinality.
const fn process_name(subject: Subject) -> &'static str {
    match subject {
        Subject::PostCreated(_) => "process post.v1.created",
        Subject::PostDeleted(_) => "process post.v1.deleted",
        Subject::Slice(_) => "process fanout.v1.slice",
        Subject::TimelineDeliver(_) => "process timeline.v1.deliver",
        Subject::TimelineBackfill(_) => "process timeline.v1.backfill",
        Subject::PushDeliver(_) => "process push.v1.deliver",
        Subject::Settled(_) => "process event.v1.settled",
        Subject::LiveTimeline => "process live.v1.timeline",
        Subject::MaxDeliveries => "process max deliveries advisory",
        Subject::Terminated => "process terminated advisory",
        Subject::DeadLetter => "process dlq.v1",
        Subject::Due => "process later.v1",
    }
}
