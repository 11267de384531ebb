//! A gRPC server on a given listener, with health, reflection and a span a call.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::shutdown;
use crate::trace::ServerLayer;

/// How long calls may take to end after the shutdown. Streams that never end are cut then.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// How long a connection may be silent before it is asked whether it lives, and how long it may take to answer.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A server that could not start or broke.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The transport failed.
    #[error("gRPC server failed")]
    Transport(#[from] tonic::transport::Error),
    /// The descriptors are no file descriptor set.
    #[error("gRPC reflection can't read the descriptors")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Adds `grpc.health.v1.Health`, where each named service (and the empty name: the whole) is SERVING, and says
/// NOT_SERVING from the shutdown on, before calls are refused. Must be called within a tokio runtime.
pub async fn with_health(routes: Routes, services: &[&str], shutdown: &CancellationToken) -> Routes {
    let (reporter, service) = tonic_health::server::health_reporter();
    report(&reporter, services, ServingStatus::Serving).await;
    let services: Vec<String> = services.iter().map(ToString::to_string).collect();
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        shutdown.cancelled().await;
        let services: Vec<_> = services.iter().map(String::as_str).collect();
        report(&reporter, &services, ServingStatus::NotServing).await;
    });
    routes.add_service(service)
}

/// Adds server reflection, v1 and v1alpha (older tools ask for that one), of a file descriptor set.
pub fn with_reflection(routes: Routes, descriptors: &'static [u8]) -> Result<Routes, Error> {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(descriptors)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(routes
        .add_service(builder().build_v1()?)
        .add_service(builder().build_v1alpha()?))
}

/// Serves routes until the shutdown; calls that are open then have [`DRAIN_LIMIT`] to end. Each call has a span; a
/// caller's `grpc-timeout` is honoured.
pub async fn serve(listener: TcpListener, routes: Routes, shutdown: CancellationToken) -> Result<(), Error> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(ServerLayer)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
    match shutdown::drain_after(&shutdown, DRAIN_LIMIT, server).await {
        Ok(ended) => Ok(ended?),
        Err(error) => {
            tracing::info!(%error, "gRPC calls cut");
            Ok(())
        }
    }
}

async fn report(reporter: &HealthReporter, services: &[&str], status: ServingStatus) {
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
    async fn a_server_says_that_it_serves_and_ends_when_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let routes = with_health(Routes::default(), &["herald.v1.PostService"], &shutdown).await;
        let routes = with_reflection(routes, tonic_health::pb::FILE_DESCRIPTOR_SET).unwrap();
        let server = tokio::spawn(serve(listener, routes, shutdown.clone()));

        let mut client = HealthClient::new(Channel::from_shared(address).unwrap().connect().await.unwrap());
        for service in ["", "herald.v1.PostService"] {
            let answer = client
                .check(HealthCheckRequest {
                    service: service.into(),
                })
                .await
                .unwrap();
            assert_eq!(answer.into_inner().status, 1);
        }
        let unknown = client
            .check(HealthCheckRequest {
                service: "other".into(),
            })
            .await
            .unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound);
        // A watch never ends by itself: it hears of the shutdown, and doesn't hold it up once it is dropped.
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
}
