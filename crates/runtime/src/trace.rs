//! Trace context propagation in gRPC calls (W3C Trace Context: `traceparent`, `tracestate`).
//!
//! Without trace export the cost is negligible: a missing header is not parsed, and a span that no layer records has no
//! context to send.

use std::pin::Pin;
use std::task::{Context as Task, Poll};

pub use herald_trace::sampled_trace_id;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use opentelemetry::Context;
use opentelemetry::global;
use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::TraceContextExt as _;
use tonic::Status;
use tonic::service::Interceptor;
use tower::{Layer, Service};
use tracing::field::Empty;
use tracing::{Instrument as _, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

const TRACEPARENT: &str = "traceparent";
const GRPC_STATUS: &str = "grpc-status";

/// Services whose calls have no spans.
const SERVICES_WITHOUT_SPANS: [&str; 3] = ["grpc.health.", "grpc.reflection.", "externalscaler."];

/// Makes `span` a child of the span in the `traceparent` header, if present.
pub fn set_parent(span: &Span, headers: &HeaderMap) {
    if span.is_disabled() || !headers.contains_key(TRACEPARENT) {
        return;
    }
    let parent = global::get_text_map_propagator(|propagator| propagator.extract(&Headers(headers)));
    // Fails if no layer exports traces; the parent is not needed then.
    let _ = span.set_parent(parent);
}

/// Writes the context of the current span into headers, if a layer records the span.
pub fn inject(headers: &mut HeaderMap) {
    let context = Span::current().context();
    if context.span().span_context().is_valid() {
        inject_context(&context, headers);
    }
}

fn inject_context(context: &Context, headers: &mut HeaderMap) {
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(context, &mut HeadersMut(headers));
    });
}

/// A client interceptor that sends the context of the current span. Use `Client::with_interceptor(channel, Inject)`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Inject;

impl Interceptor for Inject {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        let context = Span::current().context();
        if context.span().span_context().is_valid() {
            let mut headers = HeaderMap::new();
            inject_context(&context, &mut headers);
            for (name, value) in &headers {
                if let (Ok(name), Ok(value)) = (
                    tonic::metadata::AsciiMetadataKey::from_bytes(name.as_str().as_bytes()),
                    value.as_bytes().try_into(),
                ) {
                    request.metadata_mut().insert(name, value);
                }
            }
        }
        Ok(request)
    }
}

/// A tower layer for gRPC servers: each call has a span, a child of the caller's span, until the end of the response.
/// Health checks, reflection and questions of KEDA have none: they come every second, and say nothing about a post.
#[derive(Debug, Clone, Copy)]
pub struct ServerLayer {
    role: &'static str,
}

impl ServerLayer {
    /// A layer for the calls of this role.
    pub const fn new(role: &'static str) -> Self {
        Self { role }
    }
}

impl<S> Layer<S> for ServerLayer {
    type Service = Server<S>;

    fn layer(&self, inner: S) -> Server<S> {
        Server {
            inner,
            role: self.role,
        }
    }
}

/// The service that [`ServerLayer`] creates.
#[derive(Debug, Clone)]
pub struct Server<S> {
    inner: S,
    role: &'static str,
}

impl<S, A, B> Service<Request<A>> for Server<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = Response<TracedBody<B>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(task)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let span = server_span(request.uri().path(), self.role);
        set_parent(&span, request.headers());
        let call = span.in_scope(|| self.inner.call(request));
        let body_span = span.clone();
        Box::pin(
            async move {
                let mut response = call.await?;
                // A call that fails before its first message has its status in the headers, other calls in the
                // trailers.
                record_status(&body_span, response.headers());
                if let Some(trace_id) = sampled_trace_id() {
                    response.extensions_mut().insert(SampledTrace(trace_id));
                }
                Ok(response.map(|body| TracedBody {
                    body,
                    span: body_span,
                }))
            }
            .instrument(span),
        )
    }
}

/// The trace that a call belongs to, if that is sampled: in the extensions of its response, for layers outside of
/// [`ServerLayer`].
#[derive(Debug, Clone)]
pub(crate) struct SampledTrace(pub(crate) String);

/// A response body that holds the span of its call.
#[derive(Debug)]
pub struct TracedBody<B> {
    body: B,
    span: Span,
}

impl<B: Body + Unpin> Body for TracedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        let entered = this.span.enter();
        let polled = Pin::new(&mut this.body).poll_frame(task);
        drop(entered);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            record_status(&this.span, trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn server_span(path: &str, role: &'static str) -> Span {
    let (service, method) = split_path(path);
    if SERVICES_WITHOUT_SPANS
        .iter()
        .any(|prefix| service.starts_with(prefix))
    {
        return Span::none();
    }
    // A client can ask for any path; only Herald's own are served, and only their names are few.
    let (name, service, method) = if service.starts_with("herald.v1.") || service.starts_with("herald.mesh.")
    {
        (path.strip_prefix('/').unwrap_or(path), service, method)
    } else {
        ("unknown", "unknown", "unknown")
    };
    tracing::info_span!(
        "grpc",
        otel.name = name,
        otel.kind = "server",
        otel.status_code = Empty,
        herald.role = role,
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = method,
        rpc.grpc.status_code = Empty,
        post_id = Empty,
    )
}

/// The service and the method of a path such as "/herald.v1.PostService/SubmitPost".
fn split_path(path: &str) -> (&str, &str) {
    let name = path.strip_prefix('/').unwrap_or(path);
    name.split_once('/').unwrap_or((name, ""))
}

/// Adds the post that a call is about to the span of the call, the current span.
pub fn record_post(post_id: u64) {
    Span::current().record("post_id", post_id);
}

/// Span of one call of another role, a child of the current span; call [`record_code`] at its end.
pub fn client_span(role: &'static str, service: &'static str, method: &'static str) -> Span {
    tracing::info_span!(
        "grpc",
        otel.name = format_args!("{service}/{method}"),
        otel.kind = "client",
        otel.status_code = Empty,
        herald.role = role,
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = method,
        rpc.grpc.status_code = Empty,
    )
}

/// Adds the status of a call to its span, made by [`client_span`].
pub fn record_code(span: &Span, code: tonic::Code) {
    let code = i32::from(code);
    span.record("rpc.grpc.status_code", code);
    // By the conventions, every error is an error of the caller's span.
    if code != 0 {
        span.record("otel.status_code", "ERROR");
    }
}

fn record_status(span: &Span, headers: &HeaderMap) {
    if span.is_disabled() {
        return;
    }
    let code = headers
        .get(GRPC_STATUS)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<i32>().ok());
    if let Some(code) = code {
        span.record("rpc.grpc.status_code", code);
        if is_server_error(code) {
            span.record("otel.status_code", "ERROR");
        }
    }
}

/// Whether a status code is a server error by the OpenTelemetry conventions for gRPC: unknown, deadline exceeded,
/// unimplemented, internal, unavailable, data loss.
fn is_server_error(code: i32) -> bool {
    matches!(code, 2 | 4 | 12 | 13 | 14 | 15)
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (
            HeaderName::from_bytes(key.as_bytes()),
            HeaderValue::from_str(&value),
        ) {
            self.0.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::propagation::TraceContextPropagator;
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
    use tower::ServiceExt as _;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn service_with_status(
        status: &'static str,
    ) -> impl Service<
        Request<()>,
        Response = Response<tonic::body::Body>,
        Error = std::convert::Infallible,
        Future: Send + 'static,
    > {
        tower::service_fn(move |_: Request<()>| async move {
            // The headers that a call of the handler would send.
            let mut sent = HeaderMap::new();
            inject(&mut sent);
            let mut response = Response::new(tonic::body::Body::empty());
            *response.headers_mut() = sent;
            response
                .headers_mut()
                .insert(GRPC_STATUS, HeaderValue::from_static(status));
            Ok(response)
        })
    }

    async fn call(status: &'static str) -> Response<TracedBody<tonic::body::Body>> {
        let request = Request::get("/herald.v1.PostService/SubmitPost")
            .header(TRACEPARENT, PARENT)
            .body(())
            .unwrap();
        ServerLayer::new("gateway")
            .layer(service_with_status(status))
            .oneshot(request)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_call_has_a_span_in_the_trace_of_its_caller() {
        global::set_text_map_propagator(TraceContextPropagator::new());
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(exporter.clone())
            .build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let _default = herald_test_subscriber::set_for_thread(tracing_subscriber::registry().with(layer));

        let response = call("14").await;
        let sent = response.headers()[TRACEPARENT].to_str().unwrap().to_owned();
        drop(response);

        let spans = exporter.get_finished_spans().unwrap();
        let [span] = spans.as_slice() else {
            panic!("{spans:?}")
        };
        assert_eq!(span.name, "herald.v1.PostService/SubmitPost");
        assert_eq!(
            span.span_context.trace_id().to_string(),
            "0af7651916cd43dd8448eb211c80319c"
        );
        assert_eq!(span.parent_span_id.to_string(), "b7ad6b7169203331");
        assert_eq!(
            sent,
            format!(
                "00-{}-{}-01",
                span.span_context.trace_id(),
                span.span_context.span_id()
            )
        );
        assert!(matches!(span.status, opentelemetry::trace::Status::Error { .. }));
        let attribute = |key: &str| {
            span.attributes
                .iter()
                .find(|pair| pair.key.as_str() == key)
                .map(|pair| pair.value.to_string())
        };
        assert_eq!(attribute("rpc.system").as_deref(), Some("grpc"));
        assert_eq!(attribute("rpc.service").as_deref(), Some("herald.v1.PostService"));
        assert_eq!(attribute("rpc.method").as_deref(), Some("SubmitPost"));
        assert_eq!(attribute("rpc.grpc.status_code").as_deref(), Some("14"));
    }

    #[tokio::test]
    async fn without_a_layer_no_context_is_sent() {
        let _default = tracing::subscriber::set_default(tracing::subscriber::NoSubscriber::new());
        global::set_text_map_propagator(TraceContextPropagator::new());
        assert!(!call("0").await.headers().contains_key(TRACEPARENT));
    }
}
