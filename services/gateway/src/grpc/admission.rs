//! Admission control: refuses calls above the limit of calls in flight, before they are decoded.

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

/// Limits the calls in flight over all connections. A call counts until its response starts: a client stream counts
/// while it is read, a server stream only until it starts (server streams have their own limits).
#[derive(Clone)]
pub(super) struct AdmissionLayer {
    permits: Arc<Semaphore>,
    shed: Counter,
}

impl AdmissionLayer {
    pub(super) fn new(calls_max: usize, shed: Counter) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(calls_max)),
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

/// The service created by [`AdmissionLayer`].
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
        let Ok(permit) = self.layer.permits.clone().try_acquire_owned() else {
            self.layer.shed.inc();
            let refused = status::exhausted(
                "OVERLOADED",
                "too many calls are in flight; retry later",
                RETRY_AFTER,
            );
            return Box::pin(async move { Ok(refused.into_http()) });
        };
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await;
            drop(permit);
            response
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
    async fn a_call_above_the_limit_is_refused_and_a_finished_call_frees_its_permit() {
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
        while service.layer.permits.available_permits() > 0 {
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
