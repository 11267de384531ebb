//! A layer that refuses a call, or passes it on unchanged.

use std::task::{Context, Poll};

use futures::future::{Either, Ready, ready};
use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

/// Decides by the head of a request: its path, headers and extensions.
pub(super) trait Gate: Clone {
    /// The answer to a call that is refused; `None` if it is passed on.
    fn refusal<A>(&self, request: &Request<A>) -> Option<Response<Body>>;
}

/// The layer of a [`Gate`].
#[derive(Clone)]
pub(super) struct GateLayer<G>(pub(super) G);

impl<S, G: Gate> Layer<S> for GateLayer<G> {
    type Service = Gated<S, G>;

    fn layer(&self, inner: S) -> Gated<S, G> {
        Gated {
            inner,
            gate: self.0.clone(),
        }
    }
}

/// The service created by [`GateLayer`].
#[derive(Clone)]
pub(super) struct Gated<S, G> {
    inner: S,
    gate: G,
}

impl<S, G, A> Service<Request<A>> for Gated<S, G>
where
    S: Service<Request<A>, Response = Response<Body>>,
    G: Gate,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<Ready<Result<Response<Body>, S::Error>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        match self.gate.refusal(&request) {
            None => Either::Right(self.inner.call(request)),
            Some(refusal) => Either::Left(ready(Ok(refusal))),
        }
    }
}
