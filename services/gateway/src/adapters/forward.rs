//! Sends whole calls on to the service that answers them, without decoding.

use std::{
    convert::Infallible,
    marker::PhantomData,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use herald_proto::v1;
use herald_rpc::status;
use herald_runtime::{telemetry::error_chain, trace};
use http::{HeaderName, Request, Response, Version, header};
use tonic::{body::Body, server::NamedService, transport::Channel};
use tower::{Service, ServiceExt as _};

/// Which service is forwarded.
pub(crate) trait Forwarded: Send + Sync + 'static {
    /// Its full name.
    const NAME: &'static str;
}

/// GraphService.
pub(crate) struct Graph;

/// AnalyticsService.
pub(crate) struct Analytics;

/// DeadLetterService.
pub(crate) struct DeadLetters;

impl Forwarded for DeadLetters {
    const NAME: &'static str = v1::dead_letter_service_server::SERVICE_NAME;
}

impl Forwarded for Graph {
    const NAME: &'static str = v1::graph_service_server::SERVICE_NAME;
}

/// AuditService.
pub(crate) struct Audits;

impl Forwarded for Audits {
    const NAME: &'static str = v1::audit_service_server::SERVICE_NAME;
}

impl Forwarded for Analytics {
    const NAME: &'static str = v1::analytics_service_server::SERVICE_NAME;
}

/// Answers a service's calls by sending them on: messages, metadata, deadlines and trailers pass as they are.
pub(crate) struct Forward<S> {
    channel: Channel,
    service: PhantomData<fn() -> S>,
}

impl<S> Forward<S> {
    pub(crate) fn new(channel: Channel) -> Self {
        Self {
            channel,
            service: PhantomData,
        }
    }
}

impl<S> Clone for Forward<S> {
    fn clone(&self) -> Self {
        Self::new(self.channel.clone())
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
        // The channel is waited for in the call, so that one that is down refuses its own calls only.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let channel = self.channel.clone();
        prepare(&mut request);
        Box::pin(async move {
            Ok(channel.oneshot(request).await.unwrap_or_else(|error| {
                tracing::warn!(
                    service = S::NAME,
                    error = error_chain(&error),
                    "call not forwarded"
                );
                status::unavailable("SERVICE_UNAVAILABLE", format!("{} is not available", S::NAME))
                    .into_http()
            }))
        })
    }
}

/// What belongs to one connection.
const HOP_BY_HOP: [HeaderName; 5] = [
    header::CONNECTION,
    header::HOST,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// Takes off what belongs to the caller's own connection.
fn prepare(request: &mut Request<Body>) {
    *request.version_mut() = Version::HTTP_2;
    for name in HOP_BY_HOP {
        request.headers_mut().remove(name);
    }
    // The other service's span is a child of this one's, if this one is recorded.
    trace::inject(request.headers_mut());
}
