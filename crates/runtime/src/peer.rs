//! Channels to another role of Herald that can have any number of processes.
//!
//! A peer is named by one or several URLs. Each name is resolved every few seconds, so a Kubernetes headless service is
//! followed as its pods come and go. Every address is asked for its health each second. Calls are balanced over the
//! addresses that are healthy; an address that refuses connections, that answers nothing (a stopped process), or that is
//! about to shut down gets no new calls. A call that is in flight on an address that hangs fails when HTTP/2 keepalive
//! finds out, within ten seconds.
//!
//! If no address is healthy, all are tried: a health check can be wrong, and a call that fails tells the caller why.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::{BoxFuture, join_all};
use futures::stream::FuturesUnordered;
use herald_secret::SecretUrl;
use rustls::pki_types::ServerName;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::channel::Change;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::route::Route;
use crate::tls::{Changes, ClientTls};

/// Interval between two health checks of an address.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Timeout of a health check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// Health checks that must time out in a row before an address gets no more calls. A refused connection counts at once.
const TIMEOUTS_MAX: u32 = 2;
/// Interval between two resolutions of the names while all addresses are healthy.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(5);
/// Timeout of a resolution.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout of a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval of HTTP/2 keepalive pings, also on an idle connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Time until an unanswered ping closes the connection.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);
/// Maximum number of changes of addresses that the balancer has not taken yet.
const CHANGES_MAX: usize = 1_024;

/// Finds the addresses of a host and port.
pub type Resolve = Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// The addresses of a peer, as they are configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Urls(Vec<Uri>);

/// Why the URLs of a peer can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be http://HOST:PORT or https://HOST:PORT (commas separate several), is {0:?}")]
pub struct InvalidUrl(String);

/// A peer: the ways to call it, and whether it can be reached.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The ways to call it. They never give up: calls fail while no address answers, and succeed again later.
    pub route: Route,
    /// Number of healthy addresses.
    pub healthy: watch::Receiver<usize>,
}

/// The key of an endpoint of the balancer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Key {
    Address(SocketAddr),
    /// The first URL, while no name has been resolved: calls fail with the error of its resolution.
    Name,
}

/// One address of the peer.
struct Address {
    endpoint: Endpoint,
    url: Uri,
    health: HealthClient<Channel>,
    timeouts: u32,
    healthy: bool,
}

/// The result of a health check.
enum Checked {
    Healthy,
    /// The address answered that it is not healthy, or refused the connection.
    Unhealthy,
    TimedOut,
}

impl Urls {
    /// Parses URLs that are separated by commas.
    ///
    /// # Errors
    /// [`InvalidUrl`] names the first one that is not `http://HOST:PORT` or `https://HOST:PORT`.
    pub fn parse(text: &str) -> Result<Self, InvalidUrl> {
        let parse = |url: &str| {
            let invalid = || InvalidUrl(SecretUrl::new(url).redacted());
            let uri: Uri = url.parse().map_err(|_| invalid())?;
            let authority = uri.authority().ok_or_else(invalid)?;
            let host = without_brackets(authority.host());
            let is_valid = matches!(uri.scheme_str(), Some("http" | "https"))
                && !host.is_empty()
                && (!is_https(&uri) || ServerName::try_from(host).is_ok())
                && authority.port_u16().is_some_and(|port| port != 0)
                && !authority.as_str().contains('@')
                && uri.path() == "/"
                && uri.query().is_none();
            if is_valid { Ok(uri) } else { Err(invalid()) }
        };
        let urls: Vec<Uri> = text
            .split(',')
            .map(|url| parse(url.trim()))
            .collect::<Result<_, _>>()?;
        Ok(Self(urls))
    }

    /// Whether each of them is `https://`.
    pub fn all_use_tls(&self) -> bool {
        self.0.iter().all(is_https)
    }

    /// Whether one of them is `https://`.
    pub fn use_tls(&self) -> bool {
        self.0.iter().any(is_https)
    }
}

/// The host of a URL, where an IPv6 address has brackets, as resolvers and certificates have it.
fn without_brackets(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

fn is_https(url: &Uri) -> bool {
    url.scheme_str() == Some("https")
}

/// Finds addresses as the operating system does: files, DNS.
pub fn system_resolver() -> Resolve {
    Arc::new(|host, port| {
        Box::pin(async move { Ok(tokio::net::lookup_host((host.as_str(), port)).await?.collect()) })
    })
}

impl Peer {
    /// Starts to follow a peer until `stop`. `service` is the name that its health checks ask for. `tls` is for the URLs with
    /// `https://`, whose certificates must be for the host of the URL. Must be called within a tokio runtime.
    pub fn follow(
        urls: Urls,
        service: &str,
        resolve: Resolve,
        tls: Option<ClientTls>,
        stop: CancellationToken,
    ) -> Self {
        let (own, own_changes) = Channel::balance_channel(CHANGES_MAX);
        let (calls, calls_changes) = Channel::balance_channel(CHANGES_MAX);
        let (endpoints, endpoints_now) = watch::channel(Vec::new());
        let (healthy, healthy_now) = watch::channel(0);
        let mut follower = Follower {
            urls,
            service: service.to_owned(),
            resolve,
            tls: tls.map(|tls| (tls.changes(), tls)),
            changes: vec![own_changes, calls_changes],
            endpoints,
            healthy,
            addresses: BTreeMap::new(),
            balanced: BTreeSet::new(),
            unresolved: false,
        };
        tokio::spawn(async move { stop.run_until_cancelled(follower.run()).await });
        Self {
            route: Route::to_peer(own, calls, endpoints_now),
            healthy: healthy_now,
        }
    }

    /// Whether an address is healthy.
    pub fn is_healthy(&self) -> bool {
        *self.healthy.borrow() > 0
    }
}

/// Keeps the endpoints of the balancers up to date.
struct Follower {
    urls: Urls,
    service: String,
    resolve: Resolve,
    tls: Option<(Changes, ClientTls)>,
    /// To the balancers of the channels that are in use.
    changes: Vec<mpsc::Sender<Change<Key, Endpoint>>>,
    /// What the balancers have, for connections of single streams.
    endpoints: watch::Sender<Vec<Endpoint>>,
    healthy: watch::Sender<usize>,
    addresses: BTreeMap<SocketAddr, Address>,
    /// The endpoints that the balancers have.
    balanced: BTreeSet<Key>,
    /// Whether the last resolution failed.
    unresolved: bool,
}

impl Follower {
    async fn run(&mut self) {
        let mut resolved_at: Option<Instant> = None;
        loop {
            let started = Instant::now();
            self.follow_tls().await;
            let all_healthy = !self.addresses.is_empty() && self.addresses.values().all(|one| one.healthy);
            if !all_healthy || resolved_at.is_none_or(|at| at.elapsed() >= RESOLVE_INTERVAL) {
                self.resolve_names().await;
                resolved_at = Some(started);
            }
            self.check_all().await;
            if self.changes.is_empty() {
                // Every clone of the channels is gone.
                return;
            }
            tokio::time::sleep_until(started + CHECK_INTERVAL).await;
        }
    }

    /// Makes the endpoints anew after the certificate of this process has changed. A balancer uses an old connection until the
    /// new one is there.
    async fn follow_tls(&mut self) {
        let changed = self.tls.as_mut().is_some_and(|(changes, _)| changes.take());
        if !changed {
            return;
        }
        let addresses = std::mem::take(&mut self.addresses);
        for (address, one) in addresses {
            if let Some(mut new) = self.address(address, &one.url) {
                (new.timeouts, new.healthy) = (one.timeouts, one.healthy);
                self.addresses.insert(address, new);
            }
        }
        for key in self.balanced.clone() {
            if let Some(endpoint) = self.endpoint_of(&key) {
                self.tell(|| Change::Insert(key.clone(), endpoint.clone())).await;
            }
        }
        self.publish_endpoints();
    }

    /// Resolves all names. If one fails, the addresses that it had before are kept.
    async fn resolve_names(&mut self) {
        let lookups = self.urls.0.iter().map(|url| {
            let host = without_brackets(url.host().unwrap_or_default()).to_owned();
            let lookup = timeout(RESOLVE_TIMEOUT, (self.resolve)(host, url.port_u16().unwrap_or(0)));
            async move { (url, lookup.await.map_err(io::Error::from).flatten()) }
        });
        let lookups = join_all(lookups).await;
        let mut failed = false;
        let mut found = BTreeSet::new();
        let mut added = Vec::new();
        for (url, resolved) in lookups {
            match resolved {
                Ok(addresses) => {
                    found.extend(addresses.iter().copied());
                    added.extend(addresses.into_iter().map(|address| (address, url.clone())));
                }
                Err(error) => {
                    failed = true;
                    if !self.unresolved {
                        tracing::warn!(service = self.service, %url, %error, "can't resolve the name of a peer; trying again");
                    }
                }
            }
        }
        self.unresolved = failed;
        if !failed {
            self.addresses.retain(|address, _| found.contains(address));
        }
        for (address, url) in added {
            if !self.addresses.contains_key(&address)
                && let Some(new) = self.address(address, &url)
            {
                self.addresses.insert(address, new);
            }
        }
    }

    /// Checks all addresses. What one answers counts at once: an address that hangs must not delay what is known of the
    /// others.
    async fn check_all(&mut self) {
        let mut checks: FuturesUnordered<_> = self
            .addresses
            .iter()
            .map(|(address, one)| {
                let (address, health, service) = (*address, one.health.clone(), self.service.clone());
                async move { (address, check(health, &service).await) }
            })
            .collect();
        while let Some((address, result)) = checks.next().await {
            if self.record(address, &result) {
                self.update_balancers().await;
            }
        }
        self.update_balancers().await;
    }

    /// Records the result of a check. Returns whether the health of the address has changed.
    fn record(&mut self, address: SocketAddr, result: &Checked) -> bool {
        let Some(one) = self.addresses.get_mut(&address) else {
            return false;
        };
        let was_healthy = one.healthy;
        match result {
            Checked::Healthy => {
                one.timeouts = 0;
                one.healthy = true;
            }
            Checked::Unhealthy => one.healthy = false,
            Checked::TimedOut => {
                one.timeouts += 1;
                one.healthy &= one.timeouts < TIMEOUTS_MAX;
            }
        }
        if was_healthy != one.healthy {
            tracing::info!(service = self.service, %address, healthy = one.healthy, "the health of a peer changed");
        }
        was_healthy != one.healthy
    }

    /// Tells the balancers which endpoints came and went.
    async fn update_balancers(&mut self) {
        let healthy = self.addresses.values().filter(|one| one.healthy).count();
        self.healthy
            .send_if_modified(|before| std::mem::replace(before, healthy) != healthy);
        let wanted: BTreeSet<Key> = if self.addresses.is_empty() {
            BTreeSet::from([Key::Name])
        } else {
            let usable = self
                .addresses
                .iter()
                .filter(|(_, one)| one.healthy || healthy == 0);
            usable.map(|(address, _)| Key::Address(*address)).collect()
        };
        if wanted == self.balanced {
            self.changes.retain(|changes| !changes.is_closed());
            return;
        }
        for key in wanted.difference(&self.balanced.clone()) {
            if let Some(endpoint) = self.endpoint_of(key) {
                self.tell(|| Change::Insert(key.clone(), endpoint.clone())).await;
            }
        }
        for key in self.balanced.clone().difference(&wanted) {
            self.tell(|| Change::Remove(key.clone())).await;
        }
        self.balanced = wanted;
        self.publish_endpoints();
    }

    /// Gives the endpoints of the balancers to the streams.
    fn publish_endpoints(&self) {
        let endpoints = self.balanced.iter().filter_map(|key| self.endpoint_of(key));
        self.endpoints.send_replace(endpoints.collect());
    }

    fn endpoint_of(&self, key: &Key) -> Option<Endpoint> {
        match key {
            Key::Address(address) => self.addresses.get(address).map(|one| one.endpoint.clone()),
            Key::Name => self
                .urls
                .0
                .first()
                .and_then(|url| self.endpoint(url.clone(), url)),
        }
    }

    fn address(&self, address: SocketAddr, url: &Uri) -> Option<Address> {
        let scheme = if is_https(url) { "https" } else { "http" };
        let at: Uri = format!("{scheme}://{address}").parse().ok()?;
        // Servers see the name, whatever the address.
        let endpoint = self.endpoint(at, url)?.origin(url.clone());
        Some(Address {
            health: HealthClient::new(endpoint.connect_lazy()),
            endpoint,
            url: url.clone(),
            timeouts: 0,
            healthy: false,
        })
    }

    /// An endpoint at `at`, with TLS for the host of `url` if that has `https://`.
    fn endpoint(&self, at: Uri, url: &Uri) -> Option<Endpoint> {
        let endpoint = Endpoint::from(at)
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        match &self.tls {
            Some((_, tls)) if is_https(url) => tls.apply(endpoint, url.host().unwrap_or_default()).ok(),
            _ => Some(endpoint),
        }
    }

    /// Sends a change to all balancers, and forgets those whose channel is gone.
    async fn tell(&mut self, change: impl Fn() -> Change<Key, Endpoint>) {
        let mut gone = Vec::new();
        for (n, changes) in self.changes.iter().enumerate() {
            if changes.send(change()).await.is_err() {
                gone.push(n);
            }
        }
        for n in gone.into_iter().rev() {
            self.changes.remove(n);
        }
    }
}

async fn check(mut health: HealthClient<Channel>, service: &str) -> Checked {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    match timeout(CHECK_TIMEOUT, health.check(request)).await {
        Ok(Ok(answer)) if answer.get_ref().status() == ServingStatus::Serving => Checked::Healthy,
        // The address serves calls and reports no health of this service.
        Ok(Err(status)) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => Checked::Healthy,
        Ok(_) => Checked::Unhealthy,
        Err(_) => Checked::TimedOut,
    }
}

#[cfg(test)]
mod tests;
