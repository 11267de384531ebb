//! The connections of a port: how many there are, and when one is closed because its client does nothing.
//!
//! A client may connect and say nothing, stop reading, or leave an answer unread. It holds memory and a file descriptor
//! as long as nobody acts, and the servers of HTTP act only on what clients send. So each port has a [`Port`]:
//!
//! - It refuses connections above a limit, which the addresses of callers share ([`crate::shares`]).
//! - Every half second it looks at each connection, and closes those whose client is silent where it has to act: before its
//!   first request, in the middle of one, or while bytes wait that it doesn't read.
//! - It ends answers that their caller doesn't read ([`Answer`]), while other calls of the same connection go on.

mod answer;
mod io;
mod refusal;
mod secure;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::{Stream, StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;

use crate::metrics::{Counter, Gauge};
use crate::shares::{Caller, Share, Shares};
use crate::tls::ServerTls;
use io::GuardedStream;

pub use answer::{Answer, AnswerLayer, Answering, Held};
pub use secure::PortStream;

/// Interval at which the connections are looked at.
const INTERVAL: Duration = Duration::from_millis(500);
/// Time that a client has, during the shutdown, to read what waits for it.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(1);
/// Delay after a connection can't be accepted, such as for a lack of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Shortest time between two log lines about refused connections.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Interval of TCP keepalive probes.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// What clients may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of connections. The addresses of clients share them.
    pub connections_max: usize,
    /// Time for the TLS handshake and the first bytes: the HTTP/2 preface or a request.
    pub first_bytes_wait: Duration,
    /// Time for a client to read on while bytes wait in the socket.
    pub write_wait: Duration,
    /// Time for a client to read on while an answer waits for its HTTP/2 window.
    pub answer_wait: Duration,
    /// Time from the begin of a request to the begin of its response, for ports whose requests are small and quick.
    pub reply_wait: Option<Duration>,
    /// Time without a byte in either direction.
    pub idle_wait: Option<Duration>,
}

impl Default for Limits {
    /// Those of a gRPC port: HTTP/2 pings find out whether a silent client still lives.
    fn default() -> Self {
        Self {
            connections_max: 8_192,
            first_bytes_wait: Duration::from_secs(10),
            write_wait: Duration::from_secs(30),
            answer_wait: Duration::from_secs(30),
            reply_wait: None,
            idle_wait: None,
        }
    }
}

/// What is counted.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Open connections.
    pub open: Gauge,
    /// Connections refused because of their number.
    pub refused: Counter,
    /// Connections closed because their client was silent or didn't read.
    pub closed: Counter,
    /// Answers ended because their caller didn't read them.
    pub answers_cut: Counter,
    /// Connections closed because their TLS handshake failed.
    pub handshakes_failed: Counter,
}

/// A port and its connections. Clones share them.
#[derive(Clone)]
pub struct Port(Arc<Inner>);

struct Inner {
    name: &'static str,
    limits: Limits,
    counts: Counts,
    shares: Shares,
    next_id: AtomicU64,
    connections: Mutex<HashMap<u64, Connection>>,
    refusal_logged: LogLimit,
    handshake_logged: Arc<LogLimit>,
}

/// A log line that is written at most once in [`LOG_INTERVAL`].
#[derive(Default)]
struct LogLimit(Mutex<Option<Instant>>);

impl LogLimit {
    fn allows(&self) -> bool {
        let mut logged = self.0.lock();
        let allowed = logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL);
        if allowed {
            *logged = Some(Instant::now());
        }
        allowed
    }
}

/// A connection. Requests have it among their extensions. Clones share it.
#[derive(Clone)]
pub struct Connection(Arc<State>);

struct State {
    id: u64,
    address: Option<IpAddr>,
    accepted_at: Instant,
    io: Mutex<io::IoState>,
    answers: Mutex<HashMap<u64, Weak<answer::State>>>,
    next_answer: AtomicU64,
    /// Calls whose response has not begun.
    pending: AtomicUsize,
    counts: Counts,
    handshake_logged: Arc<LogLimit>,
}

/// A call whose response has not begun.
#[derive(Debug)]
pub struct PendingCall(Connection);

impl Drop for PendingCall {
    fn drop(&mut self) {
        self.0.0.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.0.id)
            .field("address", &self.0.address)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port")
            .field("name", &self.0.name)
            .field("limits", &self.0.limits)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Whom the connection belongs to, for [`Shares`].
    pub fn caller(&self) -> Caller {
        Caller {
            connection: Some(self.0.id),
            address: self.0.address,
        }
    }

    /// Whom the request with these extensions comes from.
    pub fn caller_of(extensions: &http::Extensions) -> Caller {
        let unknown = Caller {
            connection: None,
            address: None,
        };
        extensions.get().map_or(unknown, Self::caller)
    }

    /// Counts a call until its response begins. Without it, the call doesn't keep the connection open at the shutdown if
    /// nobody reads the answers of the other calls.
    pub fn begin_call(&self) -> PendingCall {
        self.0.pending.fetch_add(1, Ordering::Relaxed);
        PendingCall(self.clone())
    }

    /// Counts bytes of requests.
    fn received(&self, count: usize) {
        self.0.io.lock().received(count);
    }

    /// Counts and logs a TLS handshake that failed.
    fn handshake_failed(&self, reason: &dyn fmt::Display) {
        self.0.counts.handshakes_failed.inc();
        if self.0.handshake_logged.allows() {
            tracing::info!(address = ?self.0.address, %reason, "a TLS handshake failed");
        }
    }

    /// Closes the connection: its next read and write fail.
    fn close(&self) {
        self.0.io.lock().close();
    }

    /// Why the connection must be closed, if so. Ends answers that nobody reads.
    fn check(&self, limits: &Limits, now: Instant, shutting_down: bool) -> Option<&'static str> {
        let write_wait = if shutting_down {
            SHUTDOWN_WAIT
        } else {
            limits.write_wait
        };
        let io = self
            .0
            .io
            .lock()
            .check(limits, self.0.accepted_at, write_wait, now);
        if io.is_some() {
            return io;
        }
        let answers: Vec<_> = self.0.answers.lock().values().filter_map(Weak::upgrade).collect();
        let (mut unread, mut cut) = (0, 0);
        for answer in &answers {
            if answer.was_cut() {
                unread += 1;
                continue;
            }
            let Some(waits) = answer.waits(now) else { continue };
            if waits >= limits.answer_wait {
                answer.cut();
                cut += 1;
            }
            unread += usize::from(waits >= SHUTDOWN_WAIT);
        }
        if cut > 0 {
            self.0.counts.answers_cut.inc_by(cut);
            tracing::info!(
                address = ?self.0.address,
                answers = cut,
                wait_seconds = limits.answer_wait.as_secs(),
                "the caller did not read its answers; the calls end"
            );
        }
        let is_pending = self.0.pending.load(Ordering::Relaxed) > 0;
        (shutting_down && !is_pending && unread > 0 && unread == answers.len())
            .then_some("nothing is left but answers that the client does not read")
    }
}

impl Port {
    /// A port without connections. Its `name` is in log lines.
    pub fn new(name: &'static str, limits: Limits, counts: Counts) -> Self {
        Self(Arc::new(Inner {
            name,
            shares: Shares::new(limits.connections_max),
            limits,
            counts,
            next_id: AtomicU64::new(0),
            connections: Mutex::default(),
            refusal_logged: LogLimit::default(),
            handshake_logged: Arc::default(),
        }))
    }

    /// The connections of a listener, without TLS. Fails never: an error in accepting one is logged, and tried again.
    pub fn incoming(&self, listener: TcpListener) -> impl Stream<Item = std::io::Result<PortStream>> + use<> {
        self.incoming_tls(listener, None)
    }

    /// As [`Port::incoming`], with TLS if it is given.
    pub fn incoming_tls(
        &self,
        listener: TcpListener,
        tls: Option<ServerTls>,
    ) -> impl Stream<Item = std::io::Result<PortStream>> + use<> {
        let incoming = TcpIncoming::from(listener)
            .with_nodelay(Some(true))
            .with_keepalive(Some(TCP_KEEPALIVE));
        stream::unfold(
            (self.clone(), incoming, tls),
            |(port, mut incoming, tls)| async move {
                loop {
                    match incoming.next().await? {
                        Ok(stream) => {
                            if let Some(guarded) = port.admit(stream, tls.is_some()) {
                                let stream = PortStream::new(guarded, tls.clone());
                                return Some((Ok(stream), (port, incoming, tls)));
                            }
                        }
                        Err(error) => {
                            port.log_refusal(&error);
                            tokio::time::sleep(ACCEPT_RETRY).await;
                        }
                    }
                }
            },
        )
    }

    /// Looks at the connections every half second, for ever. After `shutdown`, clients have one second to read.
    pub async fn watch(&self, shutdown: &CancellationToken) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let connections: Vec<_> = self.0.connections.lock().values().cloned().collect();
            let now = Instant::now();
            // One log line a reason, however many connections a client has.
            let mut closed = BTreeMap::new();
            for connection in connections {
                if let Some(reason) = connection.check(&self.0.limits, now, shutdown.is_cancelled()) {
                    self.0.counts.closed.inc();
                    connection.close();
                    let (count, _) = closed.entry(reason).or_insert((0, connection.0.address));
                    *count += 1;
                }
            }
            for (reason, (connections, address)) in closed {
                tracing::info!(
                    port = self.0.name,
                    connections,
                    ?address,
                    reason,
                    "closed connections"
                );
            }
        }
    }

    /// Runs a server of this port, and looks after its connections meanwhile.
    pub async fn watch_while<T>(&self, shutdown: &CancellationToken, server: impl Future<Output = T>) -> T {
        tokio::select! {
            served = server => served,
            () = self.watch(shutdown) => std::future::pending().await,
        }
    }

    /// Takes a connection, unless there are too many.
    fn admit(&self, stream: TcpStream, is_tls: bool) -> Option<GuardedStream> {
        let peer = stream.peer_addr().ok();
        let address = peer.map(|peer: SocketAddr| Caller::address_key(peer.ip()));
        let caller = Caller {
            connection: None,
            address,
        };
        let Some(share) = self.0.shares.try_acquire(caller, 1) else {
            self.0.counts.refused.inc();
            self.log_refusal(&format_args!(
                "{} connections are open, of at most {}, and a client address may have as many as are free",
                self.0.shares.held(),
                self.0.limits.connections_max
            ));
            return None;
        };
        let connection = Connection(Arc::new(State {
            id: self.0.next_id.fetch_add(1, Ordering::Relaxed),
            address,
            accepted_at: Instant::now(),
            io: Mutex::default(),
            answers: Mutex::default(),
            next_answer: AtomicU64::new(0),
            pending: AtomicUsize::new(0),
            counts: self.0.counts.clone(),
            handshake_logged: self.0.handshake_logged.clone(),
        }));
        self.0
            .connections
            .lock()
            .insert(connection.0.id, connection.clone());
        self.0.counts.open.inc();
        Some(GuardedStream::new(
            stream,
            connection.clone(),
            is_tls,
            Registered {
                port: self.clone(),
                id: connection.0.id,
                _share: share,
            },
        ))
    }

    fn log_refusal(&self, reason: &dyn fmt::Display) {
        if self.0.refusal_logged.allows() {
            tracing::warn!(port = self.0.name, %reason, "can't accept a connection");
        }
    }
}

/// A connection's place in the table of its port.
struct Registered {
    port: Port,
    id: u64,
    _share: Share,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.port.0.connections.lock().remove(&self.id);
        self.port.0.counts.open.dec();
    }
}

#[cfg(test)]
mod tests;
