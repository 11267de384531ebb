//! Connections within a process, to roles that no other process calls. Nothing else on the machine can reach them, as it
//! could reach a port of the loopback interface.

use std::io;

use futures::{Stream, stream};
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint, Error, Uri};
use tower::service_fn;

/// Maximum number of bytes in flight in each direction of a connection.
const BUFFER_BYTES: usize = 256 << 10;

/// The end that accepts connections.
#[derive(Debug)]
pub struct Acceptor(mpsc::UnboundedReceiver<DuplexStream>);

/// The end that makes connections. Clones share the acceptor.
#[derive(Debug, Clone)]
pub struct Connector(mpsc::UnboundedSender<DuplexStream>);

/// Both ends. A connection that is made before the acceptor is served waits for it.
pub fn pair() -> (Connector, Acceptor) {
    let (connector, acceptor) = mpsc::unbounded_channel();
    (Connector(connector), Acceptor(acceptor))
}

impl Acceptor {
    /// The connections. Ends never: a server stops at its shutdown.
    pub(crate) fn incoming(self) -> impl Stream<Item = io::Result<DuplexStream>> + Send + use<> {
        stream::unfold(self.0, async |mut connections| {
            match connections.recv().await {
                Some(connection) => Some((Ok(connection), connections)),
                // Calls on connections that are open go on.
                None => std::future::pending().await,
            }
        })
    }
}

impl Connector {
    /// A channel with the settings of an endpoint, whose address is not used. Connects when it is used.
    pub(crate) fn channel_lazy(&self, endpoint: &Endpoint) -> Channel {
        let connector = self.clone();
        endpoint
            .connect_with_connector_lazy(service_fn(move |_: Uri| std::future::ready(connector.connect())))
    }

    /// A channel with the settings of an endpoint, whose address is not used.
    ///
    /// # Errors
    /// The role has stopped.
    pub(crate) async fn channel(&self, endpoint: &Endpoint) -> Result<Channel, Error> {
        let connector = self.clone();
        let connect = service_fn(move |_: Uri| std::future::ready(connector.connect()));
        endpoint.connect_with_connector(connect).await
    }

    fn connect(&self) -> io::Result<TokioIo<DuplexStream>> {
        let (own, other) = tokio::io::duplex(BUFFER_BYTES);
        self.0.send(other).map_err(|_| {
            io::Error::new(
                io::ErrorKind::ConnectionRefused,
                "the role has stopped in this process",
            )
        })?;
        Ok(TokioIo::new(own))
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;
    use tonic::service::Routes;
    use tonic_health::ServingStatus;
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

    use super::*;
    use crate::grpc::{self, Listener};
    use crate::route::Route;
    use crate::rpc_metrics::ServerMetrics;

    #[tokio::test]
    async fn a_role_is_called_until_it_stops() {
        let (connector, acceptor) = pair();
        let route = Route::in_process(connector);
        let mut early = HealthClient::new(route.calls.clone());
        let early = tokio::spawn(async move { early.check(HealthCheckRequest::default()).await });
        let (reporter, health) = tonic_health::server::health_reporter();
        let shutdown = CancellationToken::new();
        let listener = Listener::in_process(acceptor, ServerMetrics::default());
        let serving = grpc::serve("graph", listener, Routes::new(health), &[], shutdown.clone());
        let server = tokio::spawn(serving);

        assert_eq!(early.await.unwrap().unwrap().into_inner().status, 1);
        let mut own = HealthClient::new(route.own.clone());
        own.check(HealthCheckRequest::default()).await.unwrap();
        let mut stream = HealthClient::new(route.connect().await.unwrap());
        let watched = stream.watch(HealthCheckRequest::default()).await;
        let mut watched = watched.unwrap().into_inner();
        assert_eq!(watched.message().await.unwrap().unwrap().status, 1);
        reporter.set_service_status("", ServingStatus::NotServing).await;
        assert_eq!(watched.message().await.unwrap().unwrap().status, 2);

        drop((watched, stream));
        shutdown.cancel();
        server.await.unwrap().unwrap();
        let refused = own.check(HealthCheckRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
        assert!(route.connect().await.is_err());
    }
}
