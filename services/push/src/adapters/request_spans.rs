//! The spans of the requests to push providers. A chunk has up to hundreds of requests; its trace shows the first ones that
//! were accepted and the first ones that failed.

use std::time::SystemTime;

use herald_trace::ROLE;
use opentelemetry::trace::{
    Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue, global};
use parking_lot::Mutex;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use url::Url;

use crate::domain::{Provider, Reason};

/// Spans of accepted requests an attempt at a chunk.
const ACCEPTED_MAX: u32 = 2;
/// Spans of failed requests an attempt at a chunk.
const FAILED_MAX: u32 = 4;

/// The request spans of one attempt at a chunk, children of the span that was current at its start.
#[derive(Debug)]
pub(crate) struct RequestSpans {
    parent: Context,
    attempt: u64,
    left: Mutex<Left>,
}

/// How many more spans are recorded.
#[derive(Debug)]
struct Left {
    accepted: u32,
    failed: u32,
}

/// One request and how it ended.
#[derive(Debug)]
pub(crate) struct Ended<'a> {
    pub(crate) provider: Provider,
    pub(crate) url: &'a Url,
    pub(crate) started: SystemTime,
    /// The HTTP status, or why there is no response.
    pub(crate) response: Result<u16, Reason>,
}

impl RequestSpans {
    /// Spans below the current span. `attempt` is the number of the attempt at the chunk, from 1.
    pub(crate) fn new(attempt: u64) -> Self {
        let parent = tracing::Span::current().context();
        let is_recorded = parent.span().span_context().is_sampled();
        Self {
            parent,
            attempt,
            left: Mutex::new(Left {
                accepted: if is_recorded { ACCEPTED_MAX } else { 0 },
                failed: if is_recorded { FAILED_MAX } else { 0 },
            }),
        }
    }

    /// Records the span of a request, unless there are enough of its kind.
    pub(crate) fn record(&self, request: &Ended<'_>) {
        let is_accepted = matches!(request.response, Ok(200..=299));
        if !self.left.lock().take(is_accepted) {
            return;
        }
        let tracer = global::tracer_provider().tracer("herald-push");
        // Only the host: the path can be a secret.
        let mut attributes = vec![
            KeyValue::new(ROLE, "push"),
            KeyValue::new("http.request.method", "POST"),
            KeyValue::new(
                "server.address",
                request.url.host_str().unwrap_or_default().to_owned(),
            ),
            KeyValue::new("herald.push.provider", request.provider.as_str()),
            KeyValue::new("herald.attempt", i64::try_from(self.attempt).unwrap_or(i64::MAX)),
        ];
        if let Some(port) = request.url.port_or_known_default() {
            attributes.push(KeyValue::new("server.port", i64::from(port)));
        }
        let mut status = Status::Unset;
        match &request.response {
            Ok(code) => {
                attributes.push(KeyValue::new("http.response.status_code", i64::from(*code)));
                // By the conventions for HTTP clients, 4xx and 5xx are errors.
                if *code >= 400 {
                    attributes.push(KeyValue::new("error.type", code.to_string()));
                    status = Status::error("");
                }
            }
            Err(reason) => {
                attributes.push(KeyValue::new("error.type", reason.to_string()));
                status = Status::error(reason.to_string());
            }
        }
        let mut span = tracer
            .span_builder("POST")
            .with_kind(SpanKind::Client)
            .with_start_time(request.started)
            .with_attributes(attributes)
            .start_with_context(&tracer, &self.parent);
        span.set_status(status);
        span.end();
    }
}

impl Left {
    fn take(&mut self, accepted: bool) -> bool {
        let left = if accepted {
            &mut self.accepted
        } else {
            &mut self.failed
        };
        let is_left = *left > 0;
        *left = left.saturating_sub(1);
        is_left
    }
}
