//! Gives a request message over the size limit its own error: tonic refuses it as OUT_OF_RANGE, which clients take for a
//! position past the end of a list.

use std::task::{Context, Poll};

use futures::future::BoxFuture;
use herald_rpc::status;
use http::{Request, Response};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

/// Start of tonic's error for a message over the limit.
const TONIC_PREFIX: &str = "Error, decoded message length too large: ";

/// Replaces the status of a call whose request message is over the limit. The limit is that of the service that decodes
/// the message: this one, or the one that the call is forwarded to.
#[derive(Clone, Copy)]
pub(super) struct MessageSizeLayer;

impl<S> Layer<S> for MessageSizeLayer {
    type Service = MessageSize<S>;

    fn layer(&self, inner: S) -> MessageSize<S> {
        MessageSize { inner }
    }
}

/// The service created by [`MessageSizeLayer`].
#[derive(Clone)]
pub(super) struct MessageSize<S> {
    inner: S,
}

impl<S, A> Service<Request<A>> for MessageSize<S>
where
    S: Service<Request<A>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await?;
            // A call that fails before its first response has its status in the headers.
            let refused = Status::from_header_map(response.headers())
                .filter(|status| status.code() == Code::OutOfRange)
                .and_then(|status| Some(status.message().strip_prefix(TONIC_PREFIX)?.to_owned()));
            Ok(match refused {
                Some(sizes) => {
                    status::message_too_large(format!("a request message is too large: {sizes}")).into_http()
                }
                None => response,
            })
        })
    }
}
