//! The bytes of a connection, as they pass.

use std::fmt;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic::transport::server::Connected;

use super::{Connection, Limits, Registered};

/// Length of the HTTP/2 preface. A request of HTTP/1.1 is longer.
const FIRST_BYTES: usize = 24;

/// A connection that its port can close.
pub(super) struct GuardedStream {
    stream: TcpStream,
    connection: Connection,
    /// Whether the bytes are those of TLS, which are no request.
    is_tls: bool,
    _registered: Registered,
}

/// What is known of a connection's bytes.
#[derive(Default)]
pub(super) struct IoState {
    /// Bytes of requests, counted up to [`FIRST_BYTES`].
    received: usize,
    /// Begin of the time in which the socket has been full.
    blocked_since: Option<Instant>,
    /// Begin of the request that has no response yet.
    request_since: Option<Instant>,
    /// Last time at which bytes passed.
    active_at: Option<Instant>,
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl IoState {
    pub(super) fn close(&mut self) {
        self.closed = true;
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    /// Why the connection must be closed, if so.
    pub(super) fn check(
        &self,
        limits: &Limits,
        accepted_at: Instant,
        write_wait: Duration,
        now: Instant,
    ) -> Option<&'static str> {
        let is_over = |since: Option<Instant>, wait: Option<Duration>| {
            since
                .zip(wait)
                .is_some_and(|(since, wait)| now.saturating_duration_since(since) >= wait)
        };
        if self.closed {
            None
        } else if self.received < FIRST_BYTES && is_over(Some(accepted_at), Some(limits.first_bytes_wait)) {
            Some("the client sent no request")
        } else if is_over(self.blocked_since, Some(write_wait)) {
            Some("the client does not read")
        } else if is_over(self.request_since, limits.reply_wait) {
            Some("the client did not finish its request")
        } else if is_over(self.active_at, limits.idle_wait) {
            Some("the connection is idle")
        } else {
            None
        }
    }

    /// Counts bytes of requests.
    pub(super) fn received(&mut self, count: usize) {
        self.received = (self.received + count).min(FIRST_BYTES);
    }

    fn read(&mut self, result: &Poll<Result<()>>, count: usize, cx: &Context<'_>) {
        match result {
            Poll::Pending => keep(&mut self.reader, cx),
            Poll::Ready(_) if count == 0 => {}
            Poll::Ready(_) => {
                let now = Instant::now();
                self.request_since.get_or_insert(now);
                self.active_at = Some(now);
            }
        }
    }

    fn written(&mut self, result: &Poll<Result<usize>>, cx: &Context<'_>) {
        match result {
            Poll::Pending => {
                self.blocked_since.get_or_insert_with(Instant::now);
                keep(&mut self.writer, cx);
            }
            Poll::Ready(_) => {
                self.blocked_since = None;
                self.request_since = None;
                self.active_at = Some(Instant::now());
            }
        }
    }
}

fn keep(kept: &mut Option<Waker>, cx: &Context<'_>) {
    match kept {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *kept = Some(cx.waker().clone()),
    }
}

impl fmt::Debug for GuardedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedStream")
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}

impl GuardedStream {
    pub(super) fn new(
        stream: TcpStream,
        connection: Connection,
        is_tls: bool,
        registered: Registered,
    ) -> Self {
        Self {
            stream,
            connection,
            is_tls,
            _registered: registered,
        }
    }

    /// The first byte that the client has sent. It is still to be read.
    pub(super) fn poll_first_byte(&mut self, cx: &mut Context<'_>) -> Poll<Result<u8>> {
        self.check_open()?;
        let mut byte = [0];
        let peeked = self.stream.poll_peek(cx, &mut ReadBuf::new(&mut byte));
        if peeked.is_pending() {
            keep(&mut self.connection.0.io.lock().reader, cx);
        }
        match ready!(peeked)? {
            0 => Poll::Ready(Err(ErrorKind::UnexpectedEof.into())),
            _ => Poll::Ready(Ok(byte[0])),
        }
    }

    fn check_open(&self) -> Result<()> {
        if self.connection.0.io.lock().closed {
            Err(Error::new(
                ErrorKind::TimedOut,
                "closed by the server: the client did nothing",
            ))
        } else {
            Ok(())
        }
    }

    fn record_write(&self, result: Poll<Result<usize>>, cx: &Context<'_>) -> Poll<Result<usize>> {
        self.connection.0.io.lock().written(&result, cx);
        result
    }
}

impl Connected for GuardedStream {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

impl AsyncRead for GuardedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        self.check_open()?;
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        let count = buf.filled().len() - before;
        let mut io = self.connection.0.io.lock();
        io.read(&result, count, cx);
        if !self.is_tls {
            io.received(count);
        }
        drop(io);
        result
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        self.check_open()?;
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.record_write(result, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        self.check_open()?;
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.record_write(result, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
