//! Admission control: how many calls there are, how long they may take, and how many bytes wait for their callers.
//!
//! All of it is shared by connections and addresses ([`Shares`]), so that the calls of one client never keep those of
//! others out. A call counts from its first byte until its answer is sent: an answer that its caller doesn't read is a
//! call in flight.

mod call_bytes;
mod counted_stream;
mod framing;
mod request_body;

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use herald_proto::{MethodKind, method_kind};
use herald_rpc::status;
use herald_runtime::{
    connections::{Answer, Connection, Held},
    metrics::Counter,
    shares::{Share, Shares},
};
use http::{HeaderMap, Request, Response};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full};
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use crate::Config;

use call_bytes::CallBytes;
use counted_stream::CountedStream;
use framing::Framing;
use request_body::{RequestBody, RequestKind, Waits};

const RETRY_AFTER: Duration = Duration::from_millis(500);
const GRPC_TIMEOUT: &str = "grpc-timeout";
/// Path of the health check, which no limit concerns.
pub(super) const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";

/// Limits the calls over all connections.
#[derive(Clone)]
pub(super) struct AdmissionLayer(Arc<Rules>);

struct Rules {
    /// Calls with one response.
    calls: Shares,
    /// Calls with a stream of responses.
    streams: Shares,
    /// Bytes of requests and answers in memory.
    bytes: Shares,
    waits: Waits,
    /// Maximum time of a call without a deadline.
    call_deadline: Duration,
    shutdown: CancellationToken,
    shed: Counter,
}

impl AdmissionLayer {
    pub(super) fn new(config: &Config, shutdown: CancellationToken, shed: Counter) -> Self {
        // The deadline of a forwarded call is the business of the forwarding.
        let deadline_ms = config.call_deadline_ms.max(config.forward_deadline_ms + 1_000);
        Self(Arc::new(Rules {
            calls: Shares::new(config.calls_max),
            streams: Shares::new(config.response_streams_max),
            bytes: Shares::new(config.buffered_bytes_max),
            waits: Waits {
                within: Duration::from_millis(config.request_wait_ms),
                between: Duration::from_millis(config.request_idle_ms),
            },
            call_deadline: Duration::from_millis(deadline_ms),
            shutdown,
            shed,
        }))
    }
}

impl<S> Layer<S> for AdmissionLayer {
    type Service = Admission<S>;

    fn layer(&self, inner: S) -> Admission<S> {
        Admission {
            inner,
            rules: self.0.clone(),
        }
    }
}

/// The service created by [`AdmissionLayer`].
#[derive(Clone)]
pub(super) struct Admission<S> {
    inner: S,
    rules: Arc<Rules>,
}

/// A call that is admitted.
struct Admitted {
    connection: Option<Connection>,
    bytes: Arc<CallBytes>,
    /// `None` if the call doesn't count.
    share: Option<Share>,
}

impl<S> Service<Request<Body>> for Admission<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let rules = self.rules.clone();
        let connection = request.extensions().get::<Connection>().cloned();
        let caller = Connection::caller_of(request.extensions());
        let is_health_check = request.uri().path() == HEALTH_CHECK;
        let kind = match request.uri().path() {
            _ if is_health_check => MethodKind::Unary,
            path => method_kind(path).unwrap_or(MethodKind::ResponseStream),
        };
        let is_stream = kind == MethodKind::ResponseStream;
        let shares = if is_stream { &rules.streams } else { &rules.calls };
        // The probes of an orchestrator may come from the address of a proxy whose clients have all calls in flight.
        let share = (!is_health_check).then(|| shares.try_acquire(caller, 1));
        let Ok(share) = share.map(|share| share.ok_or(())).transpose() else {
            rules.shed.inc();
            return Box::pin(async move { Ok(overloaded().into_http()) });
        };
        let bytes = Arc::new(CallBytes::new(rules.bytes.clone(), caller));
        let body = std::mem::take(request.body_mut());
        let requests = match kind {
            MethodKind::Unary => RequestKind::One,
            _ => RequestKind::Many(Framing::default()),
        };
        // The answer of a stream of requests counts by itself.
        let counted = match requests {
            RequestKind::One => bytes.clone(),
            RequestKind::Many(_) => Arc::new(CallBytes::new(rules.bytes.clone(), caller)),
        };
        let body = RequestBody::new(body, requests, rules.waits, rules.shutdown.clone(), counted);
        *request.body_mut() = Body::new(body);
        let without_deadline = kind == MethodKind::Unary && !request.headers().contains_key(GRPC_TIMEOUT);
        let pending = connection.as_ref().map(Connection::begin_call);
        let admitted = Admitted {
            connection,
            bytes,
            share,
        };
        let response = self.inner.call(request);
        Box::pin(async move {
            let _pending = pending;
            let answered = async {
                let response = response.await?;
                Ok(if is_stream {
                    response.map(|body| {
                        let body = CountedStream::body(body, rules.bytes.clone(), caller);
                        admitted.answer(body)
                    })
                } else {
                    collect(response, admitted).await
                })
            };
            if !without_deadline {
                return answered.await;
            }
            match tokio::time::timeout(rules.call_deadline, answered).await {
                Ok(answered) => answered,
                Err(_) => Ok(status::deadline_exceeded(format!(
                    "the call took longer than {} ms, the time of a call without a deadline (gateway.call_deadline_ms); it \
                     may have taken effect",
                    rules.call_deadline.as_millis()
                ))
                .into_http()),
            }
        })
    }
}

impl Admitted {
    /// The body of the answer, which holds the call's share until it is sent.
    fn answer(self, body: Body) -> Body {
        match &self.connection {
            Some(connection) => {
                let held: Held = Box::new((self.share, self.bytes));
                Answer::body(body, connection, Some(held))
            }
            None => body,
        }
    }
}

/// Takes the whole answer of a call with one response from the service that makes it, so that the service has nothing to
/// do with how fast the caller reads.
async fn collect(response: Response<Body>, admitted: Admitted) -> Response<Body> {
    if response.body().is_end_stream() {
        return response;
    }
    let (parts, mut body) = response.into_parts();
    let mut data = Bytes::new();
    let mut trailers = HeaderMap::new();
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(status) => return status.into_http(),
        };
        match frame.into_data() {
            Ok(more) => {
                if !admitted.bytes.take(more.len()) {
                    return unread().into_http();
                }
                data = append(data, more);
            }
            Err(frame) => {
                if let Ok(last) = frame.into_trailers() {
                    trailers = last;
                }
            }
        }
    }
    let body = Full::new(data).with_trailers(async move { Some(Ok(trailers)) });
    Response::from_parts(parts, admitted.answer(Body::new(body)))
}

fn append(data: Bytes, more: Bytes) -> Bytes {
    if data.is_empty() {
        return more;
    }
    let mut joined = data
        .try_into_mut()
        .unwrap_or_else(|data| BytesMut::from(&data[..]));
    joined.extend_from_slice(&more);
    joined.freeze()
}

fn overloaded() -> Status {
    status::exhausted(
        "OVERLOADED",
        "too many calls of this connection, this address or all callers are in flight; retry later",
        RETRY_AFTER,
    )
}

fn unread() -> Status {
    status::exhausted(
        "OVERLOADED",
        "too many bytes of requests and unread answers of this connection, this address or all callers are in memory; \
         read the answers, or retry later",
        RETRY_AFTER,
    )
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
        let inner = service_fn(move |_: Request<Body>| {
            let finished = finished.clone();
            async move {
                finished.notified().await;
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        });
        let config = Config {
            calls_max: 1,
            response_streams_max: 1,
            ..Config::default()
        };
        let service = AdmissionLayer::new(&config, CancellationToken::new(), Counter::default()).layer(inner);
        let request = || Request::new(Body::empty());
        let code = |response: &Response<Body>| response.headers().get("grpc-status").cloned();
        let first = tokio::spawn(service.clone().oneshot(request()));
        while service.rules.streams.held() == 0 {
            tokio::task::yield_now().await;
        }
        let refused = service.clone().oneshot(request()).await.unwrap();
        assert_eq!(code(&refused).unwrap(), "8");
        finish.notify_one();
        assert_eq!(code(&first.await.unwrap().unwrap()), None);
        finish.notify_one();
        assert_eq!(code(&service.oneshot(request()).await.unwrap()), None);
    }

    #[tokio::test]
    async fn a_health_check_needs_no_share_of_the_calls() {
        let config = Config {
            calls_max: 0,
            ..Config::default()
        };
        let inner = service_fn(async |_: Request<Body>| Ok::<_, Infallible>(Response::new(Body::empty())));
        let service = AdmissionLayer::new(&config, CancellationToken::new(), Counter::default()).layer(inner);
        let code = async |path: &str| {
            let request = Request::post(path).body(Body::empty()).unwrap();
            let response = service.clone().oneshot(request).await.unwrap();
            response.headers().get("grpc-status").cloned()
        };
        assert_eq!(code("/herald.v1.PostService/GetPost").await.unwrap(), "8");
        assert_eq!(code(HEALTH_CHECK).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_a_deadline_ends() {
        let inner = service_fn(|_: Request<Body>| async {
            std::future::pending::<Result<Response<Body>, Infallible>>().await
        });
        let layer = AdmissionLayer::new(&Config::default(), CancellationToken::new(), Counter::default());
        let request = |timeout: Option<&str>| {
            let mut request = Request::post("/herald.v1.PostService/GetPost");
            if let Some(timeout) = timeout {
                request = request.header(GRPC_TIMEOUT, timeout);
            }
            request.body(Body::empty()).unwrap()
        };
        let service = layer.layer(inner);
        let ended = service.clone().oneshot(request(None)).await.unwrap();
        assert_eq!(ended.headers().get("grpc-status").unwrap(), "4");
        // The gRPC library ends a call with a deadline.
        let with_deadline = service.oneshot(request(Some("1H")));
        let waited = tokio::time::timeout(Duration::from_mins(10), with_deadline).await;
        assert!(waited.is_err());
    }
}
