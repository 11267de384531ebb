//! What the spans of all crates share: the attribute with their role, ids that every process can
//! compute, and the decision which traces are recorded. `docs/TRACES.md` describes the spans.

mod sampler;
mod span_ids;

pub use sampler::Sampler;
pub use span_ids::{SpanIds, attempt_span_id, with_span_id};

/// Attribute of a span with the role that it belongs to, such as `push`. The export makes it the resource attribute
/// `service.name`, such as `herald-push`, so that each role is a service in the traces of a process with several roles.
pub const ROLE: &str = "herald.role";

/// The value of [`ROLE`] of spans of the broker, which are of the service `nats-server`.
pub const BROKER: &str = "nats-server";

/// The current span's trace id in hexadecimal, if the trace is recorded.
pub fn sampled_trace_id() -> Option<String> {
    use opentelemetry::trace::TraceContextExt as _;
    let context = opentelemetry::Context::current();
    let span = context.span();
    let span = span.span_context();
    (span.is_valid() && span.is_sampled()).then(|| span.trace_id().to_string())
}
