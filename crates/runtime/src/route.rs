//! The ways to call a role, apart from each other.
//!
//! Calls that share an HTTP/2 connection share its window and its limits: answers that one caller doesn't read, or small
//! frames that one caller sends too fast, are the end of all calls on it. So the calls of Herald itself have a connection
//! of their own, forwarded calls with one request and one response have another one, and each forwarded stream has one
//! to itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tonic::transport::channel::Change;
use tonic::transport::{Channel, Endpoint};

use crate::in_process::Connector;
use crate::tls::ClientTls;

/// Timeout of the connection of a stream.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum number of addresses that are tried for a stream.
const TRIES_MAX: usize = 3;
/// Window of a stream. What a slow reader leaves unread stays in the role that sends it.
const STREAM_WINDOW: u32 = 64 << 10;
/// Window of a connection. It has one stream; the HTTP/2 library takes as many small frames as this window allows.
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Maximum number of changes of an endpoint that a channel has not taken yet.
const CHANGES_MAX: usize = 16;

/// The ways to call a role.
#[derive(Debug, Clone)]
pub struct Route {
    /// For Herald's own calls.
    pub own: Channel,
    /// For forwarded calls with one request and one response, whose answers are read at once.
    pub calls: Channel,
    streams: Streams,
}

#[derive(Debug, Clone)]
enum Streams {
    Local(Box<Endpoint>),
    InProcess(Connector),
    Peer {
        endpoints: watch::Receiver<Vec<Endpoint>>,
        next: Arc<AtomicUsize>,
    },
}

impl Route {
    /// To one address. Connects when it is used.
    pub fn to(endpoint: &Endpoint) -> Self {
        Self {
            own: endpoint.connect_lazy(),
            calls: endpoint.connect_lazy(),
            streams: Streams::Local(Box::new(endpoint.clone())),
        }
    }

    /// To a role of this process. Connects when it is used.
    pub fn in_process(connector: Connector) -> Self {
        let endpoint = in_process_endpoint();
        Self {
            own: connector.channel_lazy(&endpoint),
            calls: connector.channel_lazy(&endpoint),
            streams: Streams::InProcess(connector),
        }
    }

    /// To one address with TLS, whose certificate must be for `host`. Connects when it is used. When the caller's certificate
    /// changes, new connections show the new one. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`ClientTls::apply`].
    pub fn to_tls(endpoint: &Endpoint, tls: &ClientTls, host: &str) -> Result<Self, tonic::transport::Error> {
        let mut changes = tls.changes();
        let first = tls.apply(endpoint.clone(), host)?;
        let (own, own_changes) = Channel::balance_channel(CHANGES_MAX);
        let (calls, calls_changes) = Channel::balance_channel(CHANGES_MAX);
        let (endpoints, endpoints_now) = watch::channel(vec![first.clone()]);
        let (endpoint, tls, host) = (endpoint.clone(), tls.clone(), host.to_owned());
        tokio::spawn(async move {
            let mut next = Some(first);
            loop {
                if let Some(next) = next {
                    endpoints.send_replace(vec![next.clone()]);
                    // The old endpoint is used until the new one is connected.
                    let own = own_changes.send(Change::Insert((), next.clone())).await;
                    let calls = calls_changes.send(Change::Insert((), next)).await;
                    if own.is_err() && calls.is_err() && endpoints.is_closed() {
                        return;
                    }
                }
                if !changes.next().await {
                    return;
                }
                next = tls.apply(endpoint.clone(), &host).ok();
            }
        });
        Ok(Self::to_peer(own, calls, endpoints_now))
    }

    /// To a peer, whose usable endpoints can change.
    pub(crate) fn to_peer(own: Channel, calls: Channel, endpoints: watch::Receiver<Vec<Endpoint>>) -> Self {
        let next = Arc::default();
        Self {
            own,
            calls,
            streams: Streams::Peer { endpoints, next },
        }
    }

    /// Opens a connection for one stream. It closes when the stream has ended and the channel is dropped.
    ///
    /// # Errors
    /// No address could be connected to; the error is that of the last one.
    pub async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        match &self.streams {
            Streams::Local(endpoint) => connect(endpoint).await,
            Streams::InProcess(connector) => connector.channel(&for_stream(in_process_endpoint())).await,
            Streams::Peer { endpoints, next } => {
                let endpoints = endpoints.borrow().clone();
                let first = next.fetch_add(1, Ordering::Relaxed);
                let mut tried = None;
                for n in 0..endpoints.len().min(TRIES_MAX) {
                    match connect(&endpoints[first.wrapping_add(n) % endpoints.len()]).await {
                        Ok(channel) => return Ok(channel),
                        Err(error) => tried = Some(error),
                    }
                }
                match tried {
                    Some(error) => Err(error),
                    // Nothing is known of the peer yet: the shared channel waits for it, or says why it fails.
                    None => Ok(self.calls.clone()),
                }
            }
        }
    }
}

async fn connect(endpoint: &Endpoint) -> Result<Channel, tonic::transport::Error> {
    for_stream(endpoint.clone()).connect().await
}

/// The endpoint of a connection for one stream.
fn for_stream(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
}

/// Its address is in the requests, and nothing connects to it.
fn in_process_endpoint() -> Endpoint {
    Endpoint::from_static("http://localhost")
}
