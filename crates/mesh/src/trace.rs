//! W3C Trace Context in NATS headers, and the spans of publishes and handlers.

use async_nats::{HeaderMap, HeaderValue};
use herald_trace::{attempt_span_id, with_span_id};
use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::{SpanContext, TraceContextExt as _};
use opentelemetry::{Context, global};
use tracing::{Span, field};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::{Subject, headers};

/// Maximum number of links of a span: of a batch to its messages, and of a publish to the spans that it belongs to.
const LINKS_MAX: usize = 64;

/// Attribute `herald.role`: see [`herald_trace::ROLE`].
pub(crate) type Role = &'static str;

/// Span of one publish to the subject `to`, a child of the current span.
pub(crate) fn publish_span(role: Role, subject: Subject, to: &str) -> Span {
    tracing::info_span!(
        "publish",
        otel.name = publish_name(subject),
        otel.kind = "producer",
        otel.status_code = field::Empty,
        otel.status_description = field::Empty,
        herald.role = role,
        messaging.system = "nats",
        messaging.operation.name = "publish",
        messaging.operation.type = "send",
        messaging.destination.name = to,
        messaging.destination.template = template(subject, to),
        messaging.message.body.size = field::Empty,
        post_id = field::Empty,
    )
}

/// Span of one publish that belongs to several spans: a child of the first, linked to the others, up to 64.
pub(crate) fn publish_span_for(role: Role, subject: Subject, to: &str, spans: &[Span]) -> Span {
    let Some((first, others)) = spans.split_first() else {
        return publish_span(role, subject, to);
    };
    let span = first.in_scope(|| publish_span(role, subject, to));
    if !span.is_disabled() {
        for other in others.iter().take(LINKS_MAX) {
            add_link(&span, &other.context());
        }
    }
    span
}

/// Span of a redrive: starts a new trace, linked to the current span and to the message's first publish.
pub(crate) fn redrive_span(role: Role, to: &str, first: &HeaderMap) -> Span {
    let span = tracing::info_span!(
        parent: None,
        "publish",
        otel.name = "publish redrive.v1",
        otel.kind = "producer",
        otel.status_code = field::Empty,
        otel.status_description = field::Empty,
        herald.role = role,
        messaging.system = "nats",
        messaging.operation.name = "publish",
        messaging.operation.type = "send",
        messaging.destination.name = to,
        messaging.message.body.size = field::Empty,
        post_id = field::Empty,
    );
    if !span.is_disabled() {
        add_link(&span, &extract(first));
        add_link(&span, &Span::current().context());
    }
    span
}

/// Links a span to the span of a context, if there is one.
pub(crate) fn add_link(span: &Span, to: &Context) {
    let to = to.span().span_context().clone();
    if to.is_valid() {
        span.add_link(to);
    }
}

/// The message of a span.
pub(crate) struct Processed<'a> {
    pub(crate) role: Role,
    pub(crate) subject: Subject,
    /// Subject of the message.
    pub(crate) from: &'a str,
    pub(crate) consumer: &'a str,
    pub(crate) sequence: u64,
    /// Sequence of the first publish: the id of a post.
    pub(crate) post: u64,
    /// Number of this delivery of the message by its consumer, from 1.
    pub(crate) delivery: u64,
    /// Number of this attempt over all copies of the message, from 1.
    pub(crate) attempt: u64,
    pub(crate) headers: Option<&'a HeaderMap>,
}

/// Span of one handler call: a child of the publish span in the headers, linked to the attempt before. A message that
/// comes from the delay queue starts a new trace, linked to the publish into the queue and to the first publish.
pub(crate) fn process_span(message: &Processed<'_>) -> Span {
    let span = tracing::info_span!(
        parent: None,
        "process",
        otel.name = process_name(message.subject),
        otel.kind = "consumer",
        otel.status_code = field::Empty,
        otel.status_description = field::Empty,
        herald.role = message.role,
        messaging.system = "nats",
        messaging.operation.name = "process",
        messaging.operation.type = "process",
        messaging.destination.name = message.from,
        messaging.destination.template = template(message.subject, message.from),
        messaging.consumer.group.name = message.consumer,
        herald.attempt = message.attempt,
        post_id = field::Empty,
    );
    if span.is_disabled() {
        return span;
    }
    if let Subject::PostCreated(_) = message.subject {
        span.record("post_id", message.post);
    }
    let Some(headers) = message.headers else {
        return span;
    };
    let publisher = extract(headers);
    if message.subject == Subject::Due {
        add_link(&span, &publisher);
        add_link(&span, &first_trace(headers));
        return span;
    }
    let trace = publisher.span().span_context().clone();
    if !trace.is_valid() {
        return span;
    }
    // Fails without an OpenTelemetry layer; then there is no parent to set.
    let _ = span.set_parent(publisher);
    let id_of = |delivery| attempt_span_id(trace.trace_id(), message.consumer, message.sequence, delivery);
    if message.delivery > 1 {
        let (flags, state) = (trace.trace_flags(), trace.trace_state().clone());
        span.add_link(SpanContext::new(
            trace.trace_id(),
            id_of(message.delivery - 1),
            flags,
            true,
            state,
        ));
    }
    // Starts the span.
    with_span_id(id_of(message.delivery), || span.context());
    span
}

/// The publish span of a message, for the link of a batch.
#[derive(Debug, Clone)]
pub struct MessageLink(SpanContext);

impl MessageLink {
    /// `None` if the trace of the message isn't recorded.
    pub(crate) fn new(headers: Option<&HeaderMap>) -> Option<Self> {
        let publisher = extract(headers?);
        let publisher = publisher.span().span_context().clone();
        (publisher.is_valid() && publisher.is_sampled()).then_some(Self(publisher))
    }
}

/// Span of a batch of `count` messages from a stream: starts a new trace, linked to the publish spans of its messages, up
/// to 64. Without a message whose trace is recorded, there is no span.
pub fn batch_span(
    role: &'static str,
    stream: &str,
    consumer: &str,
    count: usize,
    links: &[MessageLink],
) -> Span {
    if links.is_empty() {
        return Span::none();
    }
    let span = tracing::info_span!(
        parent: None,
        "process",
        otel.name = format_args!("process {stream}"),
        otel.kind = "consumer",
        otel.status_code = field::Empty,
        otel.status_description = field::Empty,
        herald.role = role,
        messaging.system = "nats",
        messaging.operation.name = "process",
        messaging.operation.type = "process",
        messaging.destination.name = stream,
        messaging.consumer.group.name = consumer,
        messaging.batch.message_count = count,
    );
    for link in links.iter().take(LINKS_MAX) {
        span.add_link(link.0.clone());
    }
    span
}

/// The `traceparent` of the message's first publish that is named in its headers.
fn first_trace(headers: &HeaderMap) -> Context {
    let mut first = HeaderMap::new();
    if let Some(parent) = headers::get(headers, headers::FIRST_TRACE_PARENT) {
        first.insert(headers::TRACE_PARENT, parent);
    }
    extract(&first)
}

/// The template of a subject that names a message or the consumer of another message.
fn template(subject: Subject, name: &str) -> Option<&'static str> {
    match subject {
        Subject::Due if name.starts_with("later.v1.wait.") => {
            Some("later.v1.wait.{stream}.{consumer}.{message}")
        }
        Subject::Due => Some("later.v1.due.{stream}.{consumer}"),
        Subject::DeadLetter => Some("dlq.v1.{stream}.{consumer}"),
        Subject::MaxDeliveries => Some("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{stream}.{consumer}"),
        Subject::Terminated => Some("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.{stream}.{consumer}"),
        _ => None,
    }
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

/// Whether the headers carry a context of a recorded trace.
pub(crate) fn is_sampled(headers: &HeaderMap) -> bool {
    extract(headers).span().span_context().is_sampled()
}

pub(crate) fn extract(headers: &HeaderMap) -> Context {
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
