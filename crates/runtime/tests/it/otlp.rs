use std::convert::Infallible;

use bytes::Bytes;
use herald_runtime::{
    config::SecretUrl,
    telemetry::{self, Config},
};
use http::{HeaderValue, Request, Response};
use http_body_util::BodyExt as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;

/// A collector that forwards the received messages to a channel.
#[derive(Clone)]
struct Collector(mpsc::UnboundedSender<Bytes>);

impl NamedService for Collector {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl tower::Service<Request<Body>> for Collector {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let received = self.0.clone();
        Box::pin(async move {
            received
                .send(request.into_body().collect().await.unwrap().to_bytes())
                .unwrap();
            // An empty `ExportTraceServiceResponse` in gRPC framing.
            let mut response = Response::new(Body::new(http_body_util::Full::from(vec![0_u8; 5])));
            response
                .headers_mut()
                .insert("content-type", HeaderValue::from_static("application/grpc"));
            response
                .headers_mut()
                .insert("grpc-status", HeaderValue::from_static("0"));
            Ok(response)
        })
    }
}

fn contains(message: &[u8], text: &str) -> bool {
    message
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_spans_are_exported_at_shutdown() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, mut received) = mpsc::unbounded_channel();
    let server = tonic::transport::Server::builder()
        .add_routes(Routes::new(Collector(sender)))
        .serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(server);

    let config = Config {
        otlp: Some(SecretUrl::new(endpoint)),
        attributes: vec![("deployment.environment.name".into(), "a test".into())],
        ..Config::default()
    };
    let guard = telemetry::init(&config).unwrap();
    assert!(guard.is_exporting());
    assert!(matches!(
        telemetry::init(&Config::default()),
        Err(telemetry::Error::Started(_))
    ));
    drop(tracing::info_span!("the last span"));
    guard.shutdown().await;

    let message = received.recv().await.unwrap();
    for text in [
        "the last span",
        "service.name",
        "herald",
        "service.instance.id",
        "deployment.environment.name",
        "a test",
    ] {
        assert!(contains(&message, text), "{text}");
    }
}
