//! A gRPC server on a given listener, with health checks, reflection and a span per call.

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

/// Time that open calls have to finish after the shutdown; the server then aborts them. Long-lived streams always use
/// it up.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Interval of HTTP/2 keepalive pings.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Time until an unanswered ping closes the connection.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

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
/// and the types of error details (`google.rpc`) are added to it.
pub fn with_reflection(routes: Routes, descriptors: &'static [u8]) -> Result<Routes, Error> {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(descriptors)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(routes
        .add_service(builder().build_v1()?)
        .add_service(builder().build_v1alpha()?))
}

/// Serves routes until `shutdown`; open calls then have [`DRAIN_LIMIT`] to finish. Each call has a span. The server
/// enforces the caller's `grpc-timeout`.
pub async fn serve(listener: TcpListener, routes: Routes, shutdown: CancellationToken) -> Result<(), Error> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(ServerLayer)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
    match shutdown::drain_after(&shutdown, DRAIN_LIMIT, server).await {
        Ok(served) => Ok(served?),
        Err(error) => {
            tracing::info!(%error, "aborted open gRPC calls at shutdown");
            Ok(())
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
        let routes = with_health(Routes::default(), &["herald.v1.PostService"], &shutdown).await;
        let routes = with_reflection(routes, tonic_health::pb::FILE_DESCRIPTOR_SET).unwrap();
        let server = tokio::spawn(serve(listener, routes, shutdown.clone()));

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
}
