//! TLS of a connection.
//!
//! The task of the connection makes the handshake when it first reads or writes. So a handshake delays no other one, and the
//! limits of silent clients hold for it as for a client without a request.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::FallibleAccept;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::refusal::Refusal;
use super::{Connection, GuardedStream};
use crate::tls::ServerTls;

/// First byte of a TLS record of the handshake (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;

/// A connection of a port, with or without TLS.
#[derive(Debug)]
pub struct PortStream(Kind);

#[derive(Debug)]
enum Kind {
    Plain(GuardedStream),
    Tls(Box<Secure>),
}

#[derive(Debug)]
struct Secure {
    tls: ServerTls,
    connection: Connection,
    state: State,
}

enum State {
    /// Nothing is read: the first byte tells TLS from plain text.
    Beginning(GuardedStream),
    Handshake(FallibleAccept<GuardedStream>),
    Open(TlsStream<GuardedStream>),
    /// The client is told why it is refused: it doesn't use TLS, or the handshake has failed.
    Refused(Refusal),
    Failed,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Beginning(_) => "Beginning",
            Self::Handshake(_) => "Handshake",
            Self::Open(_) => "Open",
            Self::Refused(_) => "Refused",
            Self::Failed => "Failed",
        })
    }
}

impl PortStream {
    pub(super) fn new(stream: GuardedStream, tls: Option<ServerTls>) -> Self {
        Self(match tls {
            None => Kind::Plain(stream),
            Some(tls) => Kind::Tls(Box::new(Secure {
                tls,
                connection: stream.connect_info(),
                state: State::Beginning(stream),
            })),
        })
    }
}

impl Connected for PortStream {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        match &self.0 {
            Kind::Plain(stream) => stream.connect_info(),
            Kind::Tls(secure) => secure.connection.clone(),
        }
    }
}

impl Secure {
    /// The stream after the handshake.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Result<Pin<&mut TlsStream<GuardedStream>>>> {
        while !matches!(self.state, State::Open(_)) {
            if let Err(error) = ready!(self.poll_handshake(cx)) {
                self.state = State::Failed;
                return Poll::Ready(Err(error));
            }
        }
        let State::Open(stream) = &mut self.state else {
            return Poll::Ready(Err(failed()));
        };
        Poll::Ready(Ok(Pin::new(stream)))
    }

    /// One step of the handshake.
    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match &mut self.state {
            State::Beginning(stream) => {
                let first = ready!(stream.poll_first_byte(cx))?;
                let State::Beginning(stream) = std::mem::replace(&mut self.state, State::Failed) else {
                    return Poll::Ready(Err(failed()));
                };
                self.state = if first == HANDSHAKE {
                    State::Handshake(self.tls.accept(stream).into_fallible())
                } else {
                    self.connection
                        .handshake_failed(&"the client does not use TLS, which this port requires");
                    State::Refused(Refusal::of_plaintext(stream))
                };
            }
            State::Handshake(accept) => match ready!(Pin::new(accept).poll(cx)) {
                Ok(stream) => self.state = State::Open(stream),
                // The client ended the connection, or the port did.
                Err((error, _)) if error.kind() != ErrorKind::InvalidData => return Poll::Ready(Err(error)),
                // The alert is sent.
                Err((error, stream)) => {
                    self.connection.handshake_failed(&error);
                    self.state = State::Refused(Refusal::after_alert(stream));
                }
            },
            State::Refused(refusal) => {
                ready!(refusal.poll(cx))?;
                return Poll::Ready(Err(failed()));
            }
            State::Open(_) => {}
            State::Failed => return Poll::Ready(Err(failed())),
        }
        Poll::Ready(Ok(()))
    }
}

fn failed() -> Error {
    Error::new(ErrorKind::InvalidData, "the TLS handshake failed")
}

impl AsyncRead for PortStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        match &mut self.0 {
            Kind::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Kind::Tls(secure) => {
                let before = buf.filled().len();
                let read = ready!(secure.poll_open(cx))?.poll_read(cx, buf);
                secure.connection.received(buf.filled().len() - before);
                read
            }
        }
    }
}

impl AsyncWrite for PortStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        match &mut self.0 {
            Kind::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Kind::Tls(secure) => ready!(secure.poll_open(cx))?.poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        match &mut self.0 {
            Kind::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Kind::Tls(secure) => ready!(secure.poll_open(cx))?.poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Kind::Plain(stream) => stream.is_write_vectored(),
            Kind::Tls(_) => true,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match &mut self.0 {
            Kind::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Kind::Tls(secure) => ready!(secure.poll_open(cx))?.poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match &mut self.0 {
            Kind::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Kind::Tls(secure) => match &mut secure.state {
                State::Open(stream) => Pin::new(stream).poll_shutdown(cx),
                State::Beginning(stream) => Pin::new(stream).poll_shutdown(cx),
                // Dropping the stream closes it.
                State::Handshake(_) | State::Refused(_) | State::Failed => Poll::Ready(Ok(())),
            },
        }
    }
}
