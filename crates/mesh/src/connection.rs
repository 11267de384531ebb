//! A reconnecting connection to the server that reports each reconnect.

use std::error::Error as StdError;
use std::io;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::{self, context::ContextBuilder};
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, rustls};
use tokio::sync::watch;

use crate::config::{Config, without_password};
use crate::error::{Error, Result};

/// Maximum delay between two reconnect attempts.
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(1);

/// Time without a message from the server after which it is asked for one. When it owes three, after six to nine seconds,
/// the connection ends and another server of the cluster is tried: a machine that is frozen or cut off closes no
/// connection.
const PING_INTERVAL: Duration = Duration::from_secs(3);

/// Timeout of an API request.
pub(crate) const API_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) jetstream: jetstream::Context,
    /// Number of times the connection was established. After a change, answers to earlier requests may never arrive.
    epoch: watch::Receiver<u64>,
    /// The end of the connection is expected.
    closing: Arc<AtomicBool>,
}

impl Connection {
    pub(crate) async fn open(config: &Config, purpose: &'static str) -> Result<Self> {
        let (servers, auth) = config.access()?;
        let (count, mut epoch) = watch::channel(0_u64);
        let closing = Arc::new(AtomicBool::new(false));
        let is_closing = Arc::clone(&closing);
        let name = format!("{} ({purpose})", config.name);
        let connection = name.clone();
        let client = config
            .tls
            .apply(auth.apply(ConnectOptions::new())?)
            .name(name)
            .custom_inbox_prefix(&config.inbox_prefix)
            .request_timeout(Some(API_TIMEOUT))
            .ping_interval(PING_INTERVAL)
            // All subjects are built from types in this crate.
            .skip_subject_validation(true)
            .reconnect_delay_callback(|attempts| {
                let doubled = Duration::from_millis(10 << attempts.min(10));
                doubled
                    .min(RECONNECT_DELAY_MAX)
                    .mul_f64(0.5 + rand::random::<f64>() / 2.0)
            })
            .event_callback(move |event| {
                if is_closing.load(Ordering::Relaxed) {
                    tracing::debug!(connection, %event, "nats connection closes");
                } else {
                    log(&connection, &event);
                }
                if event == Event::Connected {
                    count.send_modify(|count| *count += 1);
                }
                std::future::ready(())
            })
            .connect(servers)
            .await
            .map_err(|error| {
                let servers: Vec<_> = config.urls.iter().map(|url| without_password(url)).collect();
                let advice = if matches!(tls_error(&error), Some(rustls::Error::InvalidCertificate(_))) {
                    ": the certificate of the server is not accepted; check nats.tls.ca_file"
                } else if matches!(tls_error(&error), Some(rustls::Error::InvalidMessage(_))) {
                    ": the server does not use TLS, which nats.tls requires"
                } else if error.kind() == ConnectErrorKind::TimedOut {
                    ": nothing refuses the connection and nothing answers; see whether the server is stopped or \
                     overloaded, or its machine cut off"
                } else {
                    ": start the server, or check nats.url"
                };
                Error::unavailable(format_args!("connect to {}{advice}", servers.join(", ")), error)
            })?;
        // The event of the first connection arrives asynchronously. Wait for it, so that it isn't taken for a
        // reconnect.
        let _ = tokio::time::timeout(API_TIMEOUT, epoch.wait_for(|count| *count > 0)).await;

        let jetstream = ContextBuilder::new()
            .timeout(config.publish_timeout())
            .ack_timeout(config.publish_timeout())
            .max_ack_inflight(config.publish_in_flight_max)
            .build(client.clone());
        Ok(Self {
            client,
            jetstream,
            epoch,
            closing,
        })
    }

    /// Expects the end of the connection: it is no longer worth a warning.
    pub(crate) fn expect_end(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_up(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// A receiver that changes when a connection is established after this call.
    pub(crate) fn epoch(&self) -> watch::Receiver<u64> {
        let mut epoch = self.epoch.clone();
        epoch.mark_unchanged();
        epoch
    }

    /// Waits until the connection is up.
    pub(crate) async fn wait_until_up(&self) {
        let mut epoch = self.epoch();
        while !self.is_up() {
            // The state changes shortly after the event, so poll the state too.
            let _ = tokio::time::timeout(Duration::from_millis(20), epoch.changed()).await;
        }
    }

    /// Waits until everything sent so far is written to the socket.
    pub(crate) async fn flush(&self) -> Result<()> {
        match tokio::time::timeout(API_TIMEOUT, self.client.flush()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Error::unavailable("flush", error)),
            Err(elapsed) => Err(Error::unavailable("flush", elapsed)),
        }
    }

    /// Waits until the server has received everything sent so far: it processes a connection's messages in order.
    pub(crate) async fn round_trip(&self) -> Result<()> {
        match self.jetstream.query_account().await {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::unavailable("request account information", error)),
        }
    }
}

/// The error of TLS that a connection failed by, if it was one.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(found) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

fn log(connection: &str, event: &Event) {
    match event {
        Event::Connected => tracing::info!(connection, "connected to nats"),
        Event::Disconnected => tracing::warn!(connection, "disconnected from nats"),
        Event::Closed | Event::Draining => tracing::debug!(connection, %event, "nats connection closes"),
        event => tracing::warn!(connection, %event, "nats connection event"),
    }
}
