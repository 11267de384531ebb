//! The state of the sink and its queries.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    ops::Deref,
    sync::Arc,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::{
    net::TcpListener,
    sync::{broadcast, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{Entry, Error, Keys, Latencies, Summary, server};

/// Limit of entries kept; the oldest are evicted first.
pub const ENTRIES_MAX: usize = 100_000;

/// Limit of (device, post, recipient) fingerprints kept to detect duplicates. Above the limit, new ones are not kept.
pub const SEEN_MAX: usize = 10_000_000;

/// Entries that a [`Sink::subscribe`] receiver may lag behind before it misses entries.
const SUBSCRIBER_LAG_MAX: usize = 16_384;

/// A Web Push subscription, as a browser creates it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// The push endpoint URL.
    pub endpoint: String,
    /// The public key: an uncompressed P-256 point of 65 bytes.
    pub p256dh: Vec<u8>,
    /// The authentication secret of 16 bytes (RFC 8291).
    pub auth: Vec<u8>,
}

/// A webhook to register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// The endpoint URL.
    pub url: String,
    /// The secret in Standard Webhooks format: `whsec_` and base64.
    pub secret: String,
    /// The decoded secret.
    pub secret_bytes: Vec<u8>,
}

/// An error that the sink returns instead of accepting a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InjectedFailure {
    /// The HTTP status.
    pub status: http::StatusCode,
    /// The `Retry-After` header, if any; rounded down to seconds.
    pub retry_after: Option<Duration>,
    /// Number of requests that fail; `None` for all.
    pub times: Option<u32>,
}

/// A handle of the sink. Clones share its state.
#[derive(Debug, Clone)]
pub struct Sink {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    base: Url,
    keys: Keys,
    vapid_public_key: Mutex<Option<Vec<u8>>>,
    state: Mutex<State>,
    received: watch::Sender<u64>,
    entries: broadcast::Sender<Entry>,
}

#[derive(Debug)]
struct State {
    entries: VecDeque<Entry>,
    seen: HashSet<u64>,
    latency_us: Histogram<u64>,
    duplicates: u64,
    rejected: u64,
    failed: u64,
    failures: HashMap<String, InjectedFailure>,
    response_delay: Duration,
}

impl Sink {
    /// Creates a sink with a base URL such as `http://127.0.0.1:9090`. Fails if it is not an absolute http or https
    /// URL.
    pub fn new(base_url: &str, keys: Keys) -> Result<Self, Error> {
        let base = Url::parse(base_url).ok().filter(Url::has_host);
        let base = base.filter(|url| matches!(url.scheme(), "http" | "https"));
        let base = base.ok_or_else(|| Error::BaseUrl(base_url.into()))?;
        // 1 µs to 1 h, three significant digits.
        let mut latency_us = Histogram::new_with_bounds(1, 3_600_000_000, 3)
            .unwrap_or_else(|_| unreachable!("the bounds are constant and valid"));
        latency_us.auto(true);
        let state = State {
            entries: VecDeque::new(),
            seen: HashSet::new(),
            latency_us,
            duplicates: 0,
            rejected: 0,
            failed: 0,
            failures: HashMap::new(),
            response_delay: Duration::ZERO,
        };
        Ok(Self {
            shared: Arc::new(Shared {
                base,
                keys,
                vapid_public_key: Mutex::default(),
                state: Mutex::new(state),
                received: watch::Sender::new(0),
                entries: broadcast::Sender::new(SUBSCRIBER_LAG_MAX),
            }),
        })
    }

    /// Serves until `shutdown`, then finishes open requests.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) -> Result<(), Error> {
        axum::serve(listener, server::router(self))
            .with_graceful_shutdown(async move { shutdown.cancelled().await })
            .await
            .map_err(Error::Listen)
    }

    /// A Web Push subscription for a device. The name has URL-safe characters only.
    pub fn subscription(&self, name: &str) -> Subscription {
        Subscription {
            endpoint: self.url("webpush", name),
            p256dh: self.shared.keys.p256dh(),
            auth: self.shared.keys.auth.to_vec(),
        }
    }

    /// A webhook for a device. The name has URL-safe characters only.
    pub fn webhook(&self, name: &str) -> Webhook {
        let secret_bytes = self.shared.keys.webhook.clone();
        Webhook {
            url: self.url("webhook", name),
            secret: format!("whsec_{}", BASE64_STANDARD.encode(&secret_bytes)),
            secret_bytes,
        }
    }

    /// Makes `/webpush` reject every VAPID key except this public key (65 bytes).
    pub fn expect_vapid_key(&self, public_key: Vec<u8>) {
        *self.shared.vapid_public_key.lock() = Some(public_key);
    }

    /// Makes requests for a device fail.
    pub fn fail(&self, name: &str, failure: InjectedFailure) {
        self.shared.state.lock().failures.insert(name.to_owned(), failure);
    }

    /// Removes the injected failure of a device.
    pub fn recover(&self, name: &str) {
        self.shared.state.lock().failures.remove(name);
    }

    /// Delays all responses from now on. A push is received when its delay has ended, unless the client has gone.
    pub fn delay_responses(&self, delay: Duration) {
        self.shared.state.lock().response_delay = delay;
    }

    /// The kept entries, oldest first.
    pub fn entries(&self) -> Vec<Entry> {
        self.shared.state.lock().entries.iter().cloned().collect()
    }

    /// Counts and latencies since the start.
    pub fn summary(&self) -> Summary {
        let state = self.shared.state.lock();
        Summary {
            received: *self.shared.received.borrow(),
            duplicates: state.duplicates,
            rejected: state.rejected,
            failed: state.failed,
            latency_ms: Latencies::from(&state.latency_us),
        }
    }

    /// Subscribes to new entries. A receiver that lags too far gets the number of entries it missed.
    pub fn subscribe(&self) -> broadcast::Receiver<Entry> {
        self.shared.entries.subscribe()
    }

    /// Waits until `count` entries were received since the start, and returns the kept entries.
    pub async fn wait_for(&self, count: u64) -> Vec<Entry> {
        // `self` owns the sender, so the wait can't fail.
        let _ = self
            .shared
            .received
            .subscribe()
            .wait_for(|received| *received >= count)
            .await;
        self.entries()
    }

    /// Waits until `count` requests failed because of [`fail`](Self::fail).
    pub async fn wait_for_failed(&self, count: u64) {
        let mut changed = self.shared.received.subscribe();
        while self.shared.state.lock().failed < count {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.shared.keys
    }

    pub(crate) fn vapid_public_key(&self) -> Option<Vec<u8>> {
        self.shared.vapid_public_key.lock().clone()
    }

    /// The origin of the sink, which is the audience of VAPID tokens.
    pub(crate) fn origin(&self) -> String {
        self.shared.base.origin().ascii_serialization()
    }

    /// Consumes one injected failure of a device, if any is left.
    pub(crate) fn take_failure(&self, name: &str) -> Option<InjectedFailure> {
        let mut state = self.shared.state.lock();
        let failure = state.failures.get_mut(name)?;
        if let Some(times) = &mut failure.times {
            *times = times.checked_sub(1)?;
        }
        let failure = *failure;
        state.failed += 1;
        drop(state);
        self.shared.received.send_modify(|_| ());
        Some(failure)
    }

    pub(crate) fn response_delay(&self) -> Duration {
        self.shared.state.lock().response_delay
    }

    pub(crate) fn count_rejected(&self) {
        self.shared.state.lock().rejected += 1;
    }

    pub(crate) fn record(&self, mut entry: Entry) {
        let key = fingerprint(&entry);
        let mut state = self.shared.state.lock();
        entry.duplicate = state.seen.contains(&key);
        if entry.duplicate {
            state.duplicates += 1;
        } else {
            if state.seen.len() < SEEN_MAX {
                state.seen.insert(key);
            }
            let us = u64::try_from(entry.latency.as_micros())
                .unwrap_or(u64::MAX)
                .max(1);
            state.latency_us.saturating_record(us);
        }
        if state.entries.len() == ENTRIES_MAX {
            state.entries.pop_front();
        }
        state.entries.push_back(entry.clone());
        drop(state);
        // Fails only without subscribers.
        let _ = self.shared.entries.send(entry);
        self.shared.received.send_modify(|received| *received += 1);
    }

    fn url(&self, kind: &str, name: &str) -> String {
        let mut url = self.shared.base.clone();
        url.set_path(&format!("/{kind}/{name}"));
        url.into()
    }
}

/// A sink on a free loopback port, served until dropped.
#[derive(Debug)]
pub struct Running {
    sink: Sink,
    address: SocketAddr,
    server: JoinHandle<Result<(), Error>>,
}

impl Running {
    /// Starts a sink with new keys.
    pub async fn start() -> Result<Self, Error> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(Error::Listen)?;
        let address = listener.local_addr().map_err(Error::Listen)?;
        let sink = Sink::new(&format!("http://{address}"), Keys::generate())?;
        let server = tokio::spawn(sink.clone().serve(listener, CancellationToken::new()));
        Ok(Self {
            sink,
            address,
            server,
        })
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Deref for Running {
    type Target = Sink;

    fn deref(&self) -> &Sink {
        &self.sink
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn fingerprint(entry: &Entry) -> u64 {
    let mut hasher = DefaultHasher::new();
    (entry.kind, &entry.name, entry.post_id, &entry.recipient_id).hash(&mut hasher);
    hasher.finish()
}
