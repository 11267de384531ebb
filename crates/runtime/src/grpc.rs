//! A gRPC server on a given listener, with health checks, reflection, and a span and metrics for each call.
//!
//! A service serves its routes on a [`Listener`]: a port of its own, one that the services of a process share
//! ([`SharedPort`]), or connections within the process ([`Acceptor`]).

use std::io;
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::connections::{AnswerLayer, Counts, Limits, Port};
use crate::in_process::Acceptor;
use crate::rpc_metrics::ServerMetrics;
use crate::shutdown;
use crate::tls::ServerTls;
use crate::trace::ServerLayer;

/// Time that open calls have to finish after the shutdown; the server then aborts them. Long-lived streams always use
/// it up.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Interval of HTTP/2 keepalive pings.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Time until an unanswered ping closes the connection.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for which an answer waits for its caller, another role of Herald: longer than a gateway may be told to wait for the
/// caller whom it forwards the answer to.
const ANSWER_WAIT: Duration = Duration::from_mins(70);

/// Window of a stream of requests. The part of it that the service doesn't take at once can come in the smallest frames.
pub const STREAM_WINDOW: u32 = 128 << 10;

/// Window of a connection. The HTTP/2 library ends a connection whose small frames are too many to be worth their
/// memory: for each that waits it counts what its payload lacks to 256 bytes, up to half of this window. So several
/// streams of the smallest messages fit, each with its window full; how much waits is bounded by the windows of streams.
pub const CONNECTION_WINDOW: u32 = 32 << 20;

const HEALTH_SERVICE: &str = tonic_health::pb::health_server::SERVICE_NAME;
const REFLECTION_SERVICE: &str = tonic_reflection::pb::v1::server_reflection_server::SERVICE_NAME;
const OLD_REFLECTION_SERVICE: &str = tonic_reflection::pb::v1alpha::server_reflection_server::SERVICE_NAME;

/// The server failed to start or to run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The transport failed.
    #[error("gRPC server failed")]
    Transport(#[from] tonic::transport::Error),
    /// The descriptors are not an encoded file descriptor set.
    #[error("gRPC reflection can't decode the file descriptor set")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Adds `grpc.health.v1.Health`. The named services and the empty name (the whole server) are SERVING until `shutdown`
/// and NOT_SERVING after it, before the server refuses calls. Must be called within a tokio runtime.
pub async fn with_health(routes: Routes, services: &[&str], shutdown: &CancellationToken) -> Routes {
    let (reporter, service) = tonic_health::server::health_reporter();
    set_status(&reporter, services, ServingStatus::Serving).await;
    let services: Vec<String> = services.iter().map(ToString::to_string).collect();
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        shutdown.cancelled().await;
        let services: Vec<_> = services.iter().map(String::as_str).collect();
        set_status(&reporter, &services, ServingStatus::NotServing).await;
    });
    routes.add_service(service)
}

/// Adds server reflection v1 and, for older clients, v1alpha. `descriptors` is an encoded file descriptor set. Health
/// and the types of error details (`google.rpc`) are added to it. It lists these services, health and itself.
pub fn with_reflection(
    routes: Routes,
    descriptors: &'static [u8],
    services: &[&str],
) -> Result<Routes, Error> {
    let builder = |own| {
        let listed = services.iter().copied().chain([HEALTH_SERVICE, own]);
        listed
            .fold(
                tonic_reflection::server::Builder::configure(),
                tonic_reflection::server::Builder::with_service_name,
            )
            .register_encoded_file_descriptor_set(descriptors)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(routes
        .add_service(builder(REFLECTION_SERVICE).build_v1()?)
        .add_service(builder(OLD_REFLECTION_SERVICE).build_v1alpha()?))
}

/// Where a service serves its routes.
#[derive(Debug)]
pub struct Listener(Place);

#[derive(Debug)]
enum Place {
    Own(OwnPort),
    Shared(Mount),
    InProcess(Acceptor, ServerMetrics),
}

/// A port, and what is known of it.
#[derive(Debug)]
struct OwnPort {
    listener: TcpListener,
    tls: Option<ServerTls>,
    metrics: ServerMetrics,
}

impl From<TcpListener> for Listener {
    /// A port of the service's own, whose calls are in no metric.
    fn from(listener: TcpListener) -> Self {
        Self(Place::Own(OwnPort {
            listener,
            tls: None,
            metrics: ServerMetrics::default(),
        }))
    }
}

impl Listener {
    /// Connections within the process.
    pub fn in_process(acceptor: Acceptor, metrics: ServerMetrics) -> Self {
        Self(Place::InProcess(acceptor, metrics))
    }
}

/// Serves the routes of a role until `shutdown`; open calls then have [`DRAIN_LIMIT`] to finish. Each call has a span. The
/// server enforces the caller's `grpc-timeout`.
///
/// On a port of its own the health of these services is added; see [`with_health`]. On a shared port, the health is that
/// of the port; within the process nobody asks for it.
pub async fn serve(
    role: &'static str,
    listener: impl Into<Listener>,
    routes: Routes,
    services: &[&str],
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let traced = routes.into_axum_router().layer(ServerLayer::new(role));
    let routes = Routes::from(traced);
    match listener.into().0 {
        Place::Own(port) => {
            let routes = with_health(routes, services, &shutdown).await;
            serve_recorded(port, routes, shutdown).await
        }
        Place::Shared(mount) => {
            mount.serve(routes, shutdown).await;
            Ok(())
        }
        Place::InProcess(acceptor, metrics) => {
            let server = serve_incoming(acceptor.incoming(), metrics, routes, &shutdown);
            drain(server, &shutdown).await
        }
    }
}

/// Serves routes until `shutdown`, as [`serve`] does, without adding health checks. The calls are in no metric.
pub async fn serve_routes(
    listener: TcpListener,
    tls: Option<ServerTls>,
    routes: Routes,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let port = OwnPort {
        listener,
        tls,
        metrics: ServerMetrics::default(),
    };
    serve_recorded(port, routes, shutdown).await
}

async fn serve_recorded(port: OwnPort, routes: Routes, shutdown: CancellationToken) -> Result<(), Error> {
    let OwnPort {
        listener,
        tls,
        metrics,
    } = port;
    let limits = Limits {
        answer_wait: ANSWER_WAIT,
        ..Limits::default()
    };
    let port = Port::new("gRPC", limits, Counts::default());
    let server = serve_incoming(port.incoming_tls(listener, tls), metrics, routes, &shutdown);
    drain(port.watch_while(&shutdown, server), &shutdown).await
}

/// Serves routes on connections, until the shutdown and then until the open calls have ended.
async fn serve_incoming<I>(
    incoming: impl Stream<Item = io::Result<I>>,
    metrics: ServerMetrics,
    routes: Routes,
    shutdown: &CancellationToken,
) -> Result<(), tonic::transport::Error>
where
    I: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(metrics)
        .layer(AnswerLayer)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned())
        .await
}

/// Runs a server; from the shutdown on its calls have [`DRAIN_LIMIT`] to finish.
async fn drain(
    server: impl Future<Output = Result<(), tonic::transport::Error>>,
    shutdown: &CancellationToken,
) -> Result<(), Error> {
    match shutdown::drain_after(shutdown, DRAIN_LIMIT, Box::pin(server)).await {
        Ok(served) => Ok(served?),
        Err(error) => {
            tracing::info!(%error, "aborted open gRPC calls at shutdown");
            Ok(())
        }
    }
}

/// One port for the routes of several services.
#[derive(Debug)]
pub struct SharedPort {
    port: OwnPort,
    shutdown: CancellationToken,
    mounts: Vec<oneshot::Receiver<Routes>>,
    ended: watch::Sender<bool>,
}

/// The place of one service on a [`SharedPort`].
#[derive(Debug)]
struct Mount {
    routes: oneshot::Sender<Routes>,
    port_shutdown: CancellationToken,
    port_ended: watch::Receiver<bool>,
}

impl SharedPort {
    /// A port that serves until `shutdown`.
    pub fn new(listener: TcpListener, metrics: ServerMetrics, shutdown: CancellationToken) -> Self {
        Self {
            port: OwnPort {
                listener,
                tls: None,
                metrics,
            },
            shutdown,
            mounts: Vec::new(),
            ended: watch::Sender::new(false),
        }
    }

    /// With TLS, if it is given.
    #[must_use]
    pub fn with_tls(mut self, tls: Option<ServerTls>) -> Self {
        self.port.tls = tls;
        self
    }

    /// The listener of one more service.
    pub fn mount(&mut self) -> Listener {
        let (routes, mounted) = oneshot::channel();
        self.mounts.push(mounted);
        Listener(Place::Shared(Mount {
            routes,
            port_shutdown: self.shutdown.clone(),
            port_ended: self.ended.subscribe(),
        }))
    }

    /// Waits until each mounted service has its routes, and serves them and `own` until the shutdown; open calls then
    /// have [`DRAIN_LIMIT`] to finish.
    pub async fn serve(self, own: Routes) -> Result<(), Error> {
        let Self {
            port,
            shutdown,
            mounts,
            ended,
        } = self;
        let mut router = own.into_axum_router();
        for mounted in mounts {
            let mounted = shutdown.run_until_cancelled(mounted).await;
            // A service that ends before it has routes reports its own error.
            if let Some(Ok(routes)) = mounted {
                // Both have the fallback of tonic, and a router has only one.
                router = router.merge(routes.into_axum_router().reset_fallback());
            }
        }
        let served = serve_recorded(port, Routes::from(router), shutdown).await;
        ended.send_replace(true);
        served
    }
}

impl Mount {
    /// Hands the routes over. Returns when the service stops; at the shutdown of the port, after its calls have ended.
    async fn serve(mut self, routes: Routes, shutdown: CancellationToken) {
        let _ = self.routes.send(routes);
        shutdown.cancelled().await;
        if self.port_shutdown.is_cancelled() {
            let ended = self.port_ended.wait_for(|ended| *ended);
            let _ = shutdown::drain(DRAIN_LIMIT, ended).await;
        }
    }
}

async fn set_status(reporter: &HealthReporter, services: &[&str], status: ServingStatus) {
    reporter.set_service_status("", status).await;
    for service in services {
        reporter.set_service_status(service, status).await;
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic::transport::Channel;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;

    use super::*;

    #[tokio::test]
    async fn health_is_serving_until_the_shutdown() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let routes = with_reflection(Routes::default(), tonic_health::pb::FILE_DESCRIPTOR_SET, &[]).unwrap();
        let stop = shutdown.clone();
        let server = tokio::spawn(async move {
            serve("gateway", listener, routes, &["herald.v1.PostService"], stop).await
        });

        let mut client = HealthClient::new(Channel::from_shared(address).unwrap().connect().await.unwrap());
        for service in ["", "herald.v1.PostService"] {
            let response = client
                .check(HealthCheckRequest {
                    service: service.into(),
                })
                .await
                .unwrap();
            assert_eq!(response.into_inner().status, 1);
        }
        let unknown = client
            .check(HealthCheckRequest {
                service: "other".into(),
            })
            .await
            .unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound);
        // A watch receives the new status at the shutdown, and does not delay the shutdown after it is dropped.
        let mut watch = client
            .watch(HealthCheckRequest {
                service: String::new(),
            })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status, 1);
        shutdown.cancel();
        assert_eq!(watch.message().await.unwrap().unwrap().status, 2);
        drop(watch);
        drop(client);
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn services_share_a_port() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let mut port = SharedPort::new(listener, ServerMetrics::default(), shutdown.clone());
        let (reflection, health) = (port.mount(), port.mount());
        // A service that ends before it has routes doesn't keep the others from being served.
        drop(port.mount());
        let port = tokio::spawn(port.serve(Routes::default()));
        let stop = shutdown.child_token();
        let reflecting = tokio::spawn(async move {
            let routes =
                with_reflection(Routes::default(), tonic_health::pb::FILE_DESCRIPTOR_SET, &[]).unwrap();
            serve("gateway", reflection, routes, &[], stop).await
        });
        let stop = shutdown.child_token();
        let checking = tokio::spawn(async move {
            let (_, service) = tonic_health::server::health_reporter();
            serve("gateway", health, Routes::new(service), &[], stop).await
        });

        let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
        let mut client = HealthClient::new(channel.clone());
        let response = client.check(HealthCheckRequest::default()).await.unwrap();
        assert_eq!(response.into_inner().status, 1);
        let mut reflected =
            tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(channel);
        let request = tonic_reflection::pb::v1::ServerReflectionRequest {
            message_request: Some(
                tonic_reflection::pb::v1::server_reflection_request::MessageRequest::ListServices(
                    String::new(),
                ),
            ),
            ..Default::default()
        };
        let answers = reflected
            .server_reflection_info(tokio_stream::once(request))
            .await;
        assert!(answers.unwrap().into_inner().message().await.unwrap().is_some());
        drop((client, reflected));
        shutdown.cancel();
        for ended in [port, reflecting, checking] {
            ended.await.unwrap().unwrap();
        }
    }
}
