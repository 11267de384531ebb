//! Metrics of a gRPC server: the time of each call by its method and status code, and the calls in flight.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tonic::Code;
use tower::{Layer, Service};

use crate::metrics::{Family, Gauge, Registry, TracedHistogram, traced_seconds_family};
use crate::trace::{SampledTrace, sampled_trace_id};

/// Methods that [`grpc`](crate::grpc) itself adds to servers.
const OWN_METHODS: [(&str, &str); 5] = [
    ("grpc.health.v1.Health", "Check"),
    ("grpc.health.v1.Health", "List"),
    ("grpc.health.v1.Health", "Watch"),
    ("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo"),
    ("grpc.reflection.v1alpha.ServerReflection", "ServerReflectionInfo"),
];

type Labels<const N: usize> = [(&'static str, Label); N];
type Seconds = Family<Labels<3>, TracedHistogram, fn() -> TracedHistogram>;

/// A label whose values are from the list of methods, or constant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Label {
    Listed(Arc<str>),
    Constant(&'static str),
}

impl crate::metrics::encoding::EncodeLabelValue for Label {
    fn encode(
        &self,
        encoder: &mut crate::metrics::encoding::LabelValueEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        match self {
            Self::Listed(text) => (&**text).encode(encoder),
            Self::Constant(text) => text.encode(encoder),
        }
    }
}

/// The metrics of the gRPC servers of a process, and the layer that records them. Clones share the values.
#[derive(Debug, Clone)]
pub struct ServerMetrics {
    seconds: Seconds,
    in_flight: Family<Labels<2>, Gauge>,
    methods: Arc<HashMap<String, Method>>,
}

#[derive(Debug, Clone)]
struct Method {
    service: Label,
    method: Label,
}

impl Default for ServerMetrics {
    /// Metrics that are not exported.
    fn default() -> Self {
        Self {
            seconds: traced_seconds_family(),
            in_flight: Family::default(),
            methods: Arc::default(),
        }
    }
}

impl ServerMetrics {
    /// Registers the metrics. `methods` are pairs of a service and a method. All other methods, which callers can make up, are
    /// `other`.
    pub fn new<S: AsRef<str>>(registry: &mut Registry, methods: impl IntoIterator<Item = (S, S)>) -> Self {
        let to_entry = |service: &str, method: &str| {
            let labels = Method {
                service: Label::Listed(service.into()),
                method: Label::Listed(method.into()),
            };
            (format!("/{service}/{method}"), labels)
        };
        let own = OWN_METHODS
            .iter()
            .map(|(service, method)| to_entry(service, method));
        let served = methods
            .into_iter()
            .map(|(service, method)| to_entry(service.as_ref(), method.as_ref()));
        let metrics = Self {
            methods: Arc::new(served.chain(own).collect()),
            ..Self::default()
        };
        registry.register(
            "rpc_server_duration_seconds",
            "Time of a call of the gRPC server until the end of its response, by method and status code",
            metrics.seconds.clone(),
        );
        registry.register(
            "rpc_server_in_flight",
            "Calls of the gRPC server that have not ended, by method",
            metrics.in_flight.clone(),
        );
        metrics
    }

    fn begin(&self, path: &str) -> Call {
        let other = || Method {
            service: Label::Constant("other"),
            method: Label::Constant("other"),
        };
        let method = self.methods.get(path).cloned().unwrap_or_else(other);
        let labels = [
            ("service", method.service.clone()),
            ("method", method.method.clone()),
        ];
        let in_flight = self.in_flight.get_or_create_owned(&labels);
        in_flight.inc();
        Call {
            seconds: self.seconds.clone(),
            method,
            in_flight,
            started: Instant::now(),
            code: None,
            trace_id: sampled_trace_id(),
        }
    }
}

impl<S> Layer<S> for ServerMetrics {
    type Service = Recorded<S>;

    fn layer(&self, inner: S) -> Recorded<S> {
        Recorded {
            inner,
            metrics: self.clone(),
        }
    }
}

/// A call that has not ended; dropping it ends it.
#[derive(Debug)]
struct Call {
    seconds: Seconds,
    method: Method,
    in_flight: Gauge,
    started: Instant,
    /// `None`: the caller went away before the status was sent.
    code: Option<Code>,
    trace_id: Option<String>,
}

impl Call {
    fn read_status(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get("grpc-status") {
            self.code = Some(Code::from_bytes(status.as_bytes()));
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.in_flight.dec();
        let labels = [
            ("service", self.method.service.clone()),
            ("method", self.method.method.clone()),
            (
                "code",
                Label::Constant(name(self.code.unwrap_or(Code::Cancelled))),
            ),
        ];
        self.seconds
            .get_or_create(&labels)
            .observe(self.started.elapsed(), self.trace_id.take());
    }
}

/// The service that [`ServerMetrics`] makes as a layer.
#[derive(Debug, Clone)]
pub struct Recorded<S> {
    inner: S,
    metrics: ServerMetrics,
}

impl<S, A, B> Service<Request<A>> for Recorded<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = Response<RecordedBody<B>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, task: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(task)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let mut call = self.metrics.begin(request.uri().path());
        let responding = self.inner.call(request);
        Box::pin(async move {
            let mut response = responding.await?;
            // The spans of calls can be made inside of this layer: there, each role has a layer of its own.
            if let Some(SampledTrace(trace_id)) = response.extensions_mut().remove() {
                call.trace_id = Some(trace_id);
            }
            // A call that fails before its first message has its status in the headers, other calls in the trailers.
            call.read_status(response.headers());
            Ok(response.map(|body| RecordedBody { body, call }))
        })
    }
}

/// A response body; the call ends with it.
#[derive(Debug)]
pub struct RecordedBody<B> {
    body: B,
    call: Call,
}

impl<B: Body + Unpin> Body for RecordedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(task);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            self.call.read_status(trailers);
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

/// The name of a status code as a label.
const fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http_body_util::{BodyExt as _, Full};
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
    use tower::ServiceExt as _;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::metrics::Shared;
    use crate::trace::ServerLayer;

    const METHODS: [(&str, &str); 1] = [("herald.v1.PostService", "SubmitPost")];

    fn answer(
        status: &'static str,
        in_trailers: bool,
    ) -> impl Service<
        Request<()>,
        Response = Response<impl Body<Data = Bytes, Error = Infallible> + Unpin>,
        Error = Infallible,
        Future: Send + 'static,
    > {
        tower::service_fn(move |_: Request<()>| async move {
            let mut sent = HeaderMap::new();
            sent.insert("grpc-status", status.parse().unwrap());
            let (headers, trailers) = if in_trailers {
                (HeaderMap::new(), Some(sent))
            } else {
                (sent, None)
            };
            let body = Full::new(Bytes::from_static(b"x")).with_trailers(async move { trailers.map(Ok) });
            let mut response = Response::new(Box::pin(body));
            *response.headers_mut() = headers;
            Ok(response)
        })
    }

    async fn call(metrics: &ServerMetrics, path: &str, status: &'static str, in_trailers: bool, read: bool) {
        let request = Request::get(path).body(()).unwrap();
        let service = metrics.layer(answer(status, in_trailers));
        let body = service.oneshot(request).await.unwrap().into_body();
        if read {
            body.collect().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_call_is_recorded_by_its_method_and_status() {
        let shared = Shared::new();
        let metrics = shared.register(|registry| ServerMetrics::new(registry, METHODS));
        let path = "/herald.v1.PostService/SubmitPost";
        call(&metrics, path, "0", true, true).await;
        call(&metrics, path, "14", false, true).await;
        // Its caller goes away before the end.
        call(&metrics, path, "0", true, false).await;
        call(&metrics, "/made.up.Service/Method", "12", false, true).await;
        call(&metrics, "/another/Method", "12", false, true).await;
        let text = shared.open_metrics();
        let known = "service=\"herald.v1.PostService\",method=\"SubmitPost\"";
        let other = "service=\"other\",method=\"other\"";
        for line in [
            format!("herald_rpc_server_duration_seconds_count{{{known},code=\"ok\"}} 1"),
            format!("herald_rpc_server_duration_seconds_count{{{known},code=\"unavailable\"}} 1"),
            format!("herald_rpc_server_duration_seconds_count{{{known},code=\"cancelled\"}} 1"),
            format!("herald_rpc_server_duration_seconds_count{{{other},code=\"unimplemented\"}} 2"),
            format!("herald_rpc_server_in_flight{{{known}}} 0"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("made.up"), "{text}");
    }

    #[tokio::test]
    async fn a_call_is_in_flight_until_its_response_has_ended() {
        let shared = Shared::new();
        let metrics = shared.register(|registry| ServerMetrics::new(registry, METHODS));
        let request = Request::get("/herald.v1.PostService/SubmitPost")
            .body(())
            .unwrap();
        let response = metrics.layer(answer("0", true)).oneshot(request).await.unwrap();
        assert!(shared.open_metrics().contains("method=\"SubmitPost\"} 1\n"));
        drop(response);
        assert!(shared.open_metrics().contains("method=\"SubmitPost\"} 0\n"));
    }

    #[tokio::test]
    async fn a_call_whose_span_is_made_inside_of_the_layer_names_its_trace() {
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(InMemorySpanExporter::default())
            .build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let _default = herald_test_subscriber::set_for_thread(tracing_subscriber::registry().with(layer));
        let shared = Shared::new();
        let metrics = shared.register(|registry| ServerMetrics::new(registry, METHODS));
        for (in_trailers, count) in [(true, 1), (false, 2)] {
            let service = metrics.layer(ServerLayer::new("archive").layer(answer("0", in_trailers)));
            let request = Request::get("/herald.v1.PostService/SubmitPost")
                .body(())
                .unwrap();
            let body = service.oneshot(request).await.unwrap().into_body();
            body.collect().await.unwrap();
            let text = shared.open_metrics();
            let newest = format!("}} {count} # {{trace_id=\"");
            assert!(text.contains(&newest), "{text}");
        }
    }
}
