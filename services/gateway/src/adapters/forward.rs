//! Forwards calls to another service without decoding them.

mod deadline;

use std::{
    convert::Infallible,
    marker::PhantomData,
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use futures::future::BoxFuture;
use herald_proto::v1;
use herald_rpc::status;
use herald_runtime::{
    connections::Connection,
    route::Route,
    shares::{Caller, Share, Shares},
    telemetry::error_chain,
    trace,
};
use http::{HeaderMap, HeaderName, Request, Response, Version, header};
use http_body_util::{BodyExt as _, Full};
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body, server::NamedService, transport::Channel};
use tower::{Service, ServiceExt as _};

use crate::response::end_when;

use deadline::Deadline;

/// Time after the begin of the shutdown in which an open response can finish.
const FINISH_LIMIT: Duration = Duration::from_millis(500);

/// Maximum size of a request that is forwarded in one piece. The services accept messages of 4 MiB.
const REQUEST_BYTES_MAX: usize = (4 << 20) + (64 << 10);
/// Delay before the retry of a stream that was refused because of their number.
const STREAMS_RETRY_AFTER: Duration = Duration::from_secs(2);

/// A service whose calls are forwarded.
pub(crate) trait Forwarded: Send + Sync + 'static {
    /// Full gRPC name of the service.
    const NAME: &'static str;
    /// Role that has the service.
    const ROLE: &'static str;
}

/// GraphService.
pub(crate) struct Graph;

impl Forwarded for Graph {
    const NAME: &'static str = v1::graph_service_server::SERVICE_NAME;
    const ROLE: &'static str = "graph";
}

/// AnalyticsService.
pub(crate) struct Analytics;

impl Forwarded for Analytics {
    const NAME: &'static str = v1::analytics_service_server::SERVICE_NAME;
    const ROLE: &'static str = "analytics";
}

/// DeadLetterService.
pub(crate) struct DeadLetters;

impl Forwarded for DeadLetters {
    const NAME: &'static str = v1::dead_letter_service_server::SERVICE_NAME;
    const ROLE: &'static str = "deadletter";
}

/// AuditService.
pub(crate) struct Audits;

impl Forwarded for Audits {
    const NAME: &'static str = v1::audit_service_server::SERVICE_NAME;
    const ROLE: &'static str = "deadletter";
}

/// UserDataService.
pub(crate) struct UserData;

impl Forwarded for UserData {
    const NAME: &'static str = v1::user_data_service_server::SERVICE_NAME;
    const ROLE: &'static str = "deadletter";
}

/// What all forwarded services have in common.
#[derive(Clone)]
pub(crate) struct Forwarding {
    /// The streams that may be forwarded.
    pub(crate) streams: Shares,
    /// The time of a call that comes without a deadline.
    pub(crate) deadline_default: Duration,
    pub(crate) shutdown: CancellationToken,
}

/// Forwards the calls of a service; messages, metadata and the statuses of the service stay unchanged. The service gets
/// what is left of the call's [`Deadline`].
///
/// Callers don't feel each other. A call with one request is forwarded when the request is complete, and its answer is
/// read at once, so the connection of these calls never waits for a caller. A stream has a connection of its own.
///
/// If the connection to the service breaks, a response ends with UNAVAILABLE instead of a reset of the stream, which
/// clients report as an internal error. At shutdown a response that is still open ends with UNAVAILABLE,
/// `SHUTTING_DOWN`: a stream such as the progress of a redrive would otherwise delay the shutdown until it is cut off.
pub(crate) struct Forward<S> {
    route: Route,
    forwarding: Forwarding,
    service: PhantomData<fn() -> S>,
}

impl<S> Forward<S> {
    pub(crate) fn new(route: Route, forwarding: Forwarding) -> Self {
        Self {
            route,
            forwarding,
            service: PhantomData,
        }
    }
}

impl<S> Clone for Forward<S> {
    fn clone(&self) -> Self {
        Self::new(self.route.clone(), self.forwarding.clone())
    }
}

impl<S: Forwarded> NamedService for Forward<S> {
    const NAME: &'static str = S::NAME;
}

/// What a forwarded stream has until its response ends.
struct StreamLine {
    _channel: Channel,
    _share: Share,
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
        let (route, forwarding) = (self.route.clone(), self.forwarding.clone());
        let is_unary = herald_proto::is_unary(request.uri().path());
        let caller = Connection::caller_of(request.extensions());
        request.extensions_mut().remove::<Connection>();
        prepare_headers(&mut request);
        let deadline = Deadline::of(S::ROLE, forwarding.deadline_default, &mut request);
        Box::pin(async move {
            let mut line = None;
            let response = async {
                let channel = if is_unary {
                    let body = std::mem::take(request.body_mut());
                    *request.body_mut() = read_request(body).await?;
                    route.calls.clone()
                } else {
                    let share = take_stream(&forwarding.streams, caller)?;
                    let channel = route.connect().await.map_err(NotForwarded::from_transport)?;
                    line = Some(StreamLine {
                        _channel: channel.clone(),
                        _share: share,
                    });
                    channel
                };
                let mut ready = channel
                    .ready_oneshot()
                    .await
                    .map_err(NotForwarded::from_transport)?;
                deadline.set_header(request.headers_mut());
                ready.call(request).await.map_err(NotForwarded::from_transport)
            };
            let response = tokio::select! {
                response = response => response,
                status = deadline.until_begin() => return Ok(expired::<S>(status).into_http()),
            };
            Ok(match response {
                // The gRPC library of the service ends a call whose deadline has passed, a moment before the gateway
                // does.
                Ok(response) if is_expired(response.headers()) => expired::<S>(deadline.status()).into_http(),
                Ok(response) => {
                    response.map(|body| forward_body::<S>(body, line, deadline, forwarding.shutdown))
                }
                Err(NotForwarded::Refused(status)) => status.into_http(),
                Err(NotForwarded::Failed(status)) if status::is_expired(&status) => {
                    expired::<S>(deadline.status()).into_http()
                }
                Err(NotForwarded::Failed(status)) => to_answer::<S>(status).into_http(),
            })
        })
    }
}

/// Why a call got no response from its service.
enum NotForwarded {
    /// The gateway refuses it, for what the caller has done.
    Refused(Status),
    /// The service can't be reached.
    Failed(Status),
}

impl NotForwarded {
    fn from_transport(error: tonic::transport::Error) -> Self {
        Self::Failed(Status::from_error(Box::new(error)))
    }
}

/// Reads the request of a call that has one. The service gets it in one piece: many small frames from one caller could
/// end the connection for all.
async fn read_request(mut body: Body) -> Result<Body, NotForwarded> {
    let mut data = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(more) = frame.map_err(NotForwarded::Refused)?.into_data() else {
            continue;
        };
        if data.len() + more.len() > REQUEST_BYTES_MAX {
            let message = format!("a request message is larger than {REQUEST_BYTES_MAX} bytes");
            return Err(NotForwarded::Refused(status::message_too_large(message)));
        }
        data.extend_from_slice(&more);
    }
    Ok(Body::new(
        Full::new(data.freeze()).map_err(|never: Infallible| match never {}),
    ))
}

fn take_stream(streams: &Shares, caller: Caller) -> Result<Share, NotForwarded> {
    streams.try_acquire(caller, 1).ok_or_else(|| {
        NotForwarded::Refused(status::exhausted(
            "TOO_MANY_STREAMS",
            "too many forwarded streams of this connection, this address or all callers are open \
             (gateway.forwarded_streams_max); end one, or retry later",
            STREAMS_RETRY_AFTER,
        ))
    })
}

/// Logs a call that has taken too long.
fn expired<S: Forwarded>(status: Status) -> Status {
    tracing::warn!(
        service = S::NAME,
        reason = status.message(),
        "a forwarded call took too long"
    );
    status
}

/// Whether the headers of a response end the call because its deadline has passed.
fn is_expired(headers: &HeaderMap) -> bool {
    Status::from_header_map(headers).is_some_and(|status| status::is_expired(&status))
}

/// The status for the caller of a call that could not be forwarded to its end.
fn to_answer<S: Forwarded>(status: Status) -> Status {
    tracing::warn!(
        service = S::NAME,
        error = error_chain(&status),
        "can't forward a call: the connection to the service failed"
    );
    status::from_service(S::NAME, status)
}

/// Forwards the body of a response. It ends with a status for the caller when the connection to the service breaks, when
/// the deadline passes, or when the body is still open [`FINISH_LIMIT`] after the shutdown began.
fn forward_body<S: Forwarded>(
    body: Body,
    line: Option<StreamLine>,
    deadline: Deadline,
    shutdown: CancellationToken,
) -> Body {
    let ended = async move {
        // Held until the response ends.
        let _line = line;
        let shut_down = async {
            shutdown.cancelled().await;
            tokio::time::sleep(FINISH_LIMIT).await;
        };
        tokio::select! {
            () = shut_down => {
                status::unavailable("SHUTTING_DOWN", "the server is shutting down; retry later")
            }
            status = deadline.until_end() => expired::<S>(status),
        }
    };
    end_when(body, ended, to_answer::<S>)
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use http_body::Body as _;
    use tokio::{io::copy_bidirectional, net::TcpListener, net::TcpStream};
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Code, transport::Endpoint, transport::Server};
    use tonic_health::{
        pb::{HealthCheckRequest, health_client::HealthClient},
        server::health_reporter,
    };
    use tonic_types::StatusExt as _;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    /// Starts a server of the health service, whose watches never end by themselves.
    async fn start_server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_reporter, health) = health_reporter();
        let serve = Server::builder()
            .add_service(health)
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serve);
        address
    }

    fn forward(endpoint: &Endpoint, shutdown: CancellationToken) -> Forward<Graph> {
        let forwarding = Forwarding {
            streams: Shares::new(10),
            deadline_default: LIMIT,
            shutdown,
        };
        Forward::new(Route::to(endpoint), forwarding)
    }

    fn client_of(address: SocketAddr, shutdown: CancellationToken) -> HealthClient<Forward<Graph>> {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        HealthClient::new(forward(&endpoint, shutdown))
    }

    #[tokio::test]
    async fn an_open_stream_ends_at_the_shutdown() {
        let shutdown = CancellationToken::new();
        let mut client = client_of(start_server().await, shutdown.clone());
        let request = HealthCheckRequest::default();
        let mut watch = client.watch(request).await.unwrap().into_inner();
        assert!(watch.message().await.unwrap().is_some());
        shutdown.cancel();
        let status = watch.message().await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "SHUTTING_DOWN");
    }

    #[tokio::test]
    async fn a_status_in_the_headers_ends_the_response() {
        let endpoint = Endpoint::from_shared(format!("http://{}", start_server().await)).unwrap();
        let forward = forward(&endpoint, CancellationToken::new());
        let request = Request::post("/no.Service/Method").header(header::CONTENT_TYPE, "application/grpc");
        let response = forward
            .oneshot(request.body(Body::empty()).unwrap())
            .await
            .unwrap();
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
        assert!(response.body().is_end_stream());
    }

    #[tokio::test]
    async fn a_stream_whose_connection_breaks_is_unavailable() {
        let server_address = start_server().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.unwrap();
            drop(listener);
            let mut server = TcpStream::connect(server_address).await.unwrap();
            let _ = copy_bidirectional(&mut client, &mut server).await;
        });

        let mut client = client_of(address, CancellationToken::new());
        let mut watch = client
            .watch(HealthCheckRequest::default())
            .await
            .unwrap()
            .into_inner();
        assert!(watch.message().await.unwrap().is_some());
        proxy.abort();
        for status in [
            watch.message().await.unwrap_err(),
            // The service can't be reached any more.
            client.check(HealthCheckRequest::default()).await.unwrap_err(),
        ] {
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            let details = status.get_error_details();
            assert_eq!(details.error_info().unwrap().reason, "SERVICE_UNAVAILABLE");
            assert!(details.retry_info().is_some());
        }
    }
}
