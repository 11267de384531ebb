//! The hops of a message within the broker, as spans: nats-server reports where a message arrived, which stream stored it,
//! and which servers it went to (message tracing, NATS ADR-41). Its deliveries to consumers are not among the reports;
//! those spans are made from the times in the delivered message.

use std::time::{Duration, SystemTime};

use async_nats::HeaderMap;
use futures::StreamExt as _;
use herald_model::time::Timestamp;
use herald_trace::{BROKER, ROLE};
use opentelemetry::trace::{
    Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue, global};
use serde::Deserialize;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::trace::Processed;
use crate::{Mesh, headers, trace};

/// Where the servers report, core NATS.
pub(crate) const SUBJECT: &str = "trace.v1.hops";

/// One process of a queue group gets each report.
const QUEUE_GROUP: &str = "broker-hops";

/// A report of one server about one message.
#[derive(Debug, Deserialize)]
struct Report {
    server: Server,
    request: Request,
    #[serde(default)]
    events: Vec<Event>,
}

#[derive(Debug, Deserialize)]
struct Server {
    name: String,
    #[serde(with = "time::serde::rfc3339")]
    time: OffsetDateTime,
}

#[derive(Debug, Deserialize)]
struct Request {
    #[serde(default)]
    header: std::collections::HashMap<String, Vec<String>>,
}

/// One hop.
#[derive(Debug, Deserialize)]
struct Event {
    /// `in`: arrival; `js`: storage; `eg`: to a subscription or another server; others are ignored.
    #[serde(rename = "type")]
    kind: String,
    #[serde(with = "time::serde::rfc3339")]
    ts: OffsetDateTime,
    /// Subject of an arrival.
    subj: Option<String>,
    /// Stream of a storage.
    stream: Option<String>,
    error: Option<String>,
}

impl Mesh {
    /// Turns the reports of the servers into spans until the shutdown. Reports are lost while the connection is down, and
    /// when this process lags by 65,536 of them.
    ///
    /// Messages are reported when [`Mesh::with_broker_hops`] is on at their publisher and their trace is recorded. The
    /// gateways run this; every role that publishes needs the permission to publish to `trace.v1.hops`.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) if the subscription fails.
    pub async fn run_broker_hops(&self, shutdown: CancellationToken) -> Result<()> {
        let client = &self.consuming().client;
        let reports = client.queue_subscribe(SUBJECT, QUEUE_GROUP.into()).await;
        let mut reports = reports
            .map_err(|error| Error::unavailable("subscribe to the reports of the broker's hops", error))?;
        while let Some(Some(message)) = shutdown.run_until_cancelled(reports.next()).await {
            match serde_json::from_slice(&message.payload) {
                Ok(report) => record(&report),
                Err(error) => tracing::debug!(%error, "a report of the broker's hops can't be read"),
            }
        }
        Ok(())
    }
}

/// Records the spans of a report, children of the publish.
fn record(report: &Report) {
    let publisher = publisher(report);
    if !publisher.span().span_context().is_sampled() {
        return;
    }
    let arrival = report.events.iter().find(|event| event.kind == "in");
    let Some(arrival) = arrival else { return };
    let subject = arrival.subj.clone().unwrap_or_default();
    let route = report.request.header.contains_key("Nats-Trace-Hop");
    let arrived = Hop {
        name: if route { "receive from server" } else { "receive" }.into(),
        operation: "receive",
        server: &report.server.name,
        consumer: "",
        destination: &subject,
        start: arrival.ts.into(),
        end: report.server.time.into(),
        error: arrival.error.as_deref(),
    };
    let within = arrived.record(&publisher);
    for event in &report.events {
        let (name, destination) = match (event.kind.as_str(), &event.stream) {
            ("js", Some(stream)) => (format!("store {stream}"), stream.as_str()),
            ("eg", _) => ("send".to_owned(), subject.as_str()),
            _ => continue,
        };
        Hop {
            name,
            operation: if event.kind == "js" { "store" } else { "send" },
            server: &report.server.name,
            consumer: "",
            destination,
            start: arrival.ts.into(),
            end: event.ts.into(),
            error: event.error.as_deref(),
        }
        .record(&within);
    }
}

/// The publish that a report is about.
fn publisher(report: &Report) -> Context {
    let mut headers = HeaderMap::new();
    for (name, values) in &report.request.header {
        // `HeaderMap::insert` panics for some names, and a report has all headers of the message.
        let wanted = [headers::TRACE_PARENT, headers::TRACE_STATE];
        let wanted = wanted
            .into_iter()
            .find(|wanted| name.eq_ignore_ascii_case(wanted));
        if let (Some(name), Some(value)) = (wanted, values.first()) {
            headers::add(&mut headers, name, value);
        }
    }
    trace::extract(&headers)
}

/// Records the delivery of a message: from its storage in the stream until the worker has it.
pub(crate) fn record_delivery(message: &Processed<'_>, stream: &str, stored_at: Timestamp) {
    let Some(headers) = message.headers else { return };
    let publisher = trace::extract(headers);
    if !publisher.span().span_context().is_sampled() {
        return;
    }
    let stored_at = SystemTime::UNIX_EPOCH + Duration::from_micros(stored_at.0.try_into().unwrap_or(0));
    Hop {
        name: format!("deliver {stream}"),
        operation: "deliver",
        server: "",
        consumer: message.consumer,
        destination: stream,
        start: stored_at,
        end: SystemTime::now(),
        error: None,
    }
    .record(&publisher);
}

/// One span of the broker.
struct Hop<'a> {
    name: String,
    operation: &'static str,
    server: &'a str,
    /// Empty for hops before a consumer.
    consumer: &'a str,
    destination: &'a str,
    start: SystemTime,
    end: SystemTime,
    error: Option<&'a str>,
}

impl Hop<'_> {
    /// Records the span as a child of `parent`, and returns its context.
    fn record(self, parent: &Context) -> Context {
        let tracer = global::tracer_provider().tracer(BROKER);
        let mut attributes = vec![
            KeyValue::new(ROLE, BROKER),
            KeyValue::new("messaging.system", "nats"),
            KeyValue::new("messaging.operation.name", self.operation),
            KeyValue::new("messaging.destination.name", self.destination.to_owned()),
        ];
        for (key, value) in [
            ("server.address", self.server),
            ("messaging.consumer.group.name", self.consumer),
        ] {
            if !value.is_empty() {
                attributes.push(KeyValue::new(key, value.to_owned()));
            }
        }
        let mut span = tracer
            .span_builder(self.name)
            .with_kind(SpanKind::Internal)
            .with_start_time(self.start)
            .with_attributes(attributes)
            .start_with_context(&tracer, parent);
        if let Some(error) = self.error {
            // A stream refuses a message that it has already; nothing is wrong.
            let is_duplicate = error.contains("duplicate");
            let kind = if is_duplicate { "duplicate" } else { "refused" };
            span.set_attribute(KeyValue::new("error.type", kind));
            if !is_duplicate {
                span.set_status(Status::error(error.to_owned()));
            }
        }
        // The clocks of the broker and of this machine can differ.
        span.end_with_timestamp(self.end.max(self.start));
        parent.with_remote_span_context(span.span_context().clone())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REPORT: &str = r#"{"server":{"name":"n1","time":"2026-01-31T08:00:00Z"},
        "request":{"header":{"Traceparent":["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],"a:b\u0007":["x"]}},
        "events":[{"type":"in","ts":"2026-01-31T08:00:00Z","subj":"post.v1.created.low"},
        {"type":"js","ts":"2026-01-31T08:00:00.1Z","stream":"POSTS","error":"duplicate"}]}"#;

    #[test]
    fn a_report_with_any_header_name_is_recorded() {
        record(&serde_json::from_str(REPORT).unwrap());
    }

    proptest! {
        #[test]
        fn bytes_near_a_report_are_recorded_or_refused(
            report in herald_fuzz::near(Just(REPORT.as_bytes().to_vec())),
        ) {
            if let Ok(report) = serde_json::from_slice(&report) {
                record(&report);
            }
        }
    }
}
