//! Forwards calls to another service without decoding them.

use std::{
    convert::Infallible,
    marker::PhantomData,
    task::{Context, Poll},
    time::Duration,
};

use futures::{future::BoxFuture, stream};
use herald_proto::v1;
use herald_rpc::status;
use herald_runtime::{telemetry::error_chain, trace};
use http::{HeaderMap, HeaderName, Request, Response, Version, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, server::NamedService, transport::Channel};
use tower::{Service, ServiceExt as _};

/// Time after the begin of the shutdown in which an open response can finish.
const FINISH_LIMIT: Duration = Duration::from_millis(500);

/// A service whose calls are forwarded.
pub(crate) trait Forwarded: Send + Sync + 'static {
    /// Full gRPC name of the service.
    const NAME: &'static str;
}

/// GraphService.
pub(crate) struct Graph;

impl Forwarded for Graph {
    const NAME: &'static str = v1::graph_service_server::SERVICE_NAME;
}

/// AnalyticsService.
pub(crate) struct Analytics;

impl Forwarded for Analytics {
    const NAME: &'static str = v1::analytics_service_server::SERVICE_NAME;
}

/// DeadLetterService.
pub(crate) struct DeadLetters;

impl Forwarded for DeadLetters {
    const NAME: &'static str = v1::dead_letter_service_server::SERVICE_NAME;
}

/// AuditService.
pub(crate) struct Audits;

impl Forwarded for Audits {
    const NAME: &'static str = v1::audit_service_server::SERVICE_NAME;
}

/// Forwards the calls of a service; messages, metadata, deadlines and trailers stay unchanged.
///
/// At shutdown a response that is still open ends with UNAVAILABLE, `SHUTTING_DOWN`: a stream such as the progress of a
/// redrive would otherwise delay the shutdown until it is cut off.
pub(crate) struct Forward<S> {
    channel: Channel,
    shutdown: CancellationToken,
    service: PhantomData<fn() -> S>,
}

impl<S> Forward<S> {
    pub(crate) fn new(channel: Channel, shutdown: CancellationToken) -> Self {
        Self {
            channel,
            shutdown,
            service: PhantomData,
        }
    }
}

impl<S> Clone for Forward<S> {
    fn clone(&self) -> Self {
        Self::new(self.channel.clone(), self.shutdown.clone())
    }
}

impl<S: Forwarded> NamedService for Forward<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Forwarded> Service<Request<Body>> for Forward<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The call waits for the channel, so that an unavailable service blocks no call to another service.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let channel = self.channel.clone();
        let shutdown = self.shutdown.clone();
        prepare_headers(&mut request);
        Box::pin(async move {
            let response = channel.oneshot(request).await;
            let response = response.map(|response| response.map(|body| end_at_shutdown(body, shutdown)));
            Ok(response.unwrap_or_else(|error| {
                tracing::warn!(
                    service = S::NAME,
                    error = error_chain(&error),
                    "can't forward a call: the service is unavailable"
                );
                status::unavailable(
                    "SERVICE_UNAVAILABLE",
                    format!("{} is not available; retry later", S::NAME),
                )
                .into_http()
            }))
        })
    }
}

/// Ends a response with UNAVAILABLE when it is still open [`FINISH_LIMIT`] after the shutdown began.
fn end_at_shutdown(body: Body, shutdown: CancellationToken) -> Body {
    let ended = async move {
        shutdown.cancelled().await;
        tokio::time::sleep(FINISH_LIMIT).await;
    };
    let frames = stream::unfold(Some((body, Box::pin(ended))), |state| async move {
        let (mut body, mut ended) = state?;
        tokio::select! {
            biased;
            frame = body.frame() => frame.map(|frame| (frame, Some((body, ended)))),
            () = &mut ended => {
                let status = status::unavailable("SHUTTING_DOWN", "the server is shutting down; retry later");
                let mut trailers = HeaderMap::new();
                let added = status.add_header(&mut trailers).map(|()| Frame::trailers(trailers));
                Some((added, None))
            }
        }
    });
    Body::new(StreamBody::new(frames))
}

/// Headers that are valid for one connection only (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 5] = [
    header::CONNECTION,
    header::HOST,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// Removes hop-by-hop headers and adds the trace context.
fn prepare_headers(request: &mut Request<Body>) {
    *request.version_mut() = Version::HTTP_2;
    for name in HOP_BY_HOP {
        request.headers_mut().remove(name);
    }
    // If the gateway records the trace, the span of the other service becomes a child of the gateway's span.
    trace::inject(request.headers_mut());
}
