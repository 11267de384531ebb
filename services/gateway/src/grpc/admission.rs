//! Refuses calls when too many are under way, before they cost anything.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use herald_rpc::status;
use herald_runtime::metrics::Counter;
use http::{Request, Response};
use tokio::sync::Semaphore;
use tonic::body::Body;
use tower::{Layer, Service};

const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Lets so many calls in at the same time, over all connections. A call counts until its answer begins: a client's stream
/// counts as long as it is read, a server's stream only at its start (those have limits of their own).
#[derive(Clone)]
pub(super) struct AdmissionLayer {
    places: Arc<Semaphore>,
    shed: Counter,
}

impl AdmissionLayer {
    pub(super) fn new(calls_max: usize, shed: Counter) -> Self {
        Self {
            places: Arc::new(Semaphore::new(calls_max)),
            shed,
        }
    }
}

impl<S> Layer<S> for AdmissionLayer {
    type Service = Admission<S>;

    fn layer(&self, inner: S) -> Admission<S> {
        Admission {
            inner,
            layer: self.clone(),
        }
    }
}

/// The service that [`AdmissionLayer`] makes.
#[derive(Clone)]
pub(super) struct Admission<S> {
    inner: S,
    layer: AdmissionLayer,
}

impl<S, A> Service<Request<A>> for Admission<S>
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
        let Ok(place) = self.layer.places.clone().try_acquire_owned() else {
            self.layer.shed.inc();
            let refused = status::exhausted("OVERLOADED", "too many calls are under way", RETRY_AFTER);
            return Box::pin(async move { Ok(refused.into_http()) });
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            drop(place);
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tokio::sync::Notify;
    use tower::{ServiceExt as _, service_fn};

    use super::*;

    #[tokio::test]
    async fn a_call_too_many_is_refused_and_its_place_comes_back() {
        let finish = Arc::new(Notify::new());
        let finished = finish.clone();
        let inner = service_fn(move |_: Request<()>| {
            let finished = finished.clone();
            async move {
                finished.notified().await;
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        });
        let service = AdmissionLayer::new(1, Counter::default()).layer(inner);
        let code = |response: &Response<Body>| response.headers().get("grpc-status").cloned();
        let first = tokio::spawn(service.clone().oneshot(Request::new(())));
        while service.layer.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let refused = service.clone().oneshot(Request::new(())).await.unwrap();
        assert_eq!(code(&refused).unwrap(), "8");
        finish.notify_one();
        assert_eq!(code(&first.await.unwrap().unwrap()), None);
        finish.notify_one();
        assert_eq!(code(&service.oneshot(Request::new(())).await.unwrap()), None);
    }
}
